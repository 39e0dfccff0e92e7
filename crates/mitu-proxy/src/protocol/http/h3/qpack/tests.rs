use super::table::SIZE;
use super::*;

fn section(hex: &str) -> Bytes {
    let digits: Vec<u8> = hex.bytes().filter(|byte| byte.is_ascii_hexdigit()).collect();
    let pairs = digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap());
    pairs.collect::<Vec<_>>().into()
}

fn decode(section: Bytes) -> Result<Vec<(String, String)>, DecodeError> {
    let mut decoder = Decoder::new(section, 1024)?;
    let mut fields = Vec::new();
    while let Some(Field { name, value }) = decoder.next()? {
        let name = match name {
            FieldName::Known(name) => name.as_str().to_owned(),
            FieldName::Literal(name) => String::from_utf8(name.to_vec()).unwrap(),
        };
        fields.push((name, String::from_utf8_lossy(&value).into_owned()));
    }
    Ok(fields)
}

fn pairs(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    fields.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

#[test]
fn the_example_of_the_rfc_is_read() {
    // RFC 9204, appendix B.1.
    let fields = decode(section("0000 510b 2f69 6e64 6578 2e68 746d 6c")).unwrap();
    assert_eq!(fields, pairs(&[(":path", "/index.html")]));
}

#[test]
fn strings_in_the_huffman_code_are_read() {
    // RFC 7541, appendix C.4.1 to C.4.3, as literals with literal names.
    let fields = decode(section("0000 51 8c f1e3c2e5f23a6ba0ab90f4ff 2f 01 25a849e95ba97d7f 89 25a849e95bb8e8b4bf"));
    assert_eq!(fields.unwrap(), pairs(&[(":path", "www.example.com"), ("custom-key", "custom-value")]));
}

#[test]
fn every_byte_has_a_code_and_comes_back() {
    let (mut code, mut before) = (0_u64, 0);
    let mut order: Vec<usize> = (0..257).collect();
    order.sort_by_key(|&symbol| (huffman::LENGTHS[symbol], symbol));
    for symbol in order {
        let length = usize::from(huffman::LENGTHS[symbol]);
        code <<= length - before;
        before = length;
        // Padded with ones to whole bytes.
        let padded = ((code + 1) << (40 - length)) - 1;
        let mut decoded = BytesMut::new();
        let read = huffman::decode(&padded.to_be_bytes()[3..3 + length.div_ceil(8)], &mut decoded);
        match u8::try_from(symbol) {
            Ok(byte) => assert_eq!((read, &decoded[..]), (Some(()), &[byte][..])),
            Err(_) => assert_eq!((read, code), (None, 0x3fff_ffff)),
        }
        code += 1;
    }
}

#[test]
fn what_is_written_is_read() {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("content-type", "application/json"),
        ("content-type", "text/x"),
        ("x-frame-options", "deny"),
        ("x-frame-options", "none"),
        ("x-own", "value"),
        ("a-name-that-is-longer-than-what-the-prefix-holds", "v"),
    ] {
        headers.append(name, HeaderValue::from_static(value));
    }
    headers.insert("x-long", HeaderValue::from_str(&"x".repeat(300)).unwrap());
    headers.insert(header::DATE, HeaderValue::from_static("then"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    for (status, text) in [(StatusCode::OK, "200"), (StatusCode::IM_A_TEAPOT, "418"), (StatusCode::TOO_EARLY, "425")] {
        let mut written = BytesMut::new();
        encode_head(status, &headers, &mut written);
        let read = decode(written.freeze()).unwrap();
        assert_eq!(read[0], (":status".to_owned(), text.to_owned()));
        let expected = headers.iter().filter(|(name, _)| **name != header::CONNECTION);
        let expected: Vec<_> =
            expected.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        assert_eq!(read[1..], expected);
    }
}

#[test]
fn every_entry_is_found_by_its_index() {
    for index in 0..SIZE {
        let mut section = BytesMut::from(&[0, 0][..]);
        indexed(index, &mut section);
        let (name, value) = table::get(index).unwrap();
        assert_eq!(decode(section.freeze()).unwrap(), pairs(&[(name.as_str(), value)]));
        if let Name::Header(name) = name {
            let (found, _) = table::find(name, &HeaderValue::from_static(value));
            assert_eq!(table::get(found.unwrap()).unwrap().0.as_str(), name.as_str());
        }
    }
}

#[test]
fn what_is_malformed_is_refused() {
    for malformed in [
        "",
        "00",
        // A dynamic table: insert count, indexed, named, behind the base.
        "0200 80",
        "0000 80",
        "0000 40 00",
        "0000 10",
        "0000 00 00",
        // Beyond the static table.
        "0000 ff 24",
        "0000 ff ffffffffff00",
        // Strings that end early.
        "0000 51 05 61",
        "0000 23 61",
        "0000 51",
        // Padding of eight bits, of zeros, and the end's code within a string.
        "0000 51 82 1fff",
        "0000 51 81 18",
        "0000 51 84 ffffffff",
    ] {
        assert_eq!(decode(section(malformed)), Err(DecodeError::Malformed), "{malformed}");
    }
}

#[test]
fn what_is_too_large_is_told_apart() {
    let mut headers = HeaderMap::new();
    headers.insert("x-long", HeaderValue::from_str(&"x".repeat(1000)).unwrap());
    let mut written = BytesMut::new();
    encode_trailers(&headers, &mut written);
    assert_eq!(decode(written.freeze()), Err(DecodeError::TooLarge));
    // A small section can count for much.
    let many = Bytes::from([&[0, 0][..], &[0xc0 | 17; 100]].concat());
    assert_eq!(decode(many), Err(DecodeError::TooLarge));
}
