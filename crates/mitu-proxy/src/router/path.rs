//! One spelling for every path, so that a matcher and the upstream cannot read the same path differently.
//!
//! Before routing, percent-encoded unreserved characters are decoded (`%2e`, `%61`) and dot segments are removed
//! (RFC 3986, sections 6.2.2.2 and 5.2.4); that spelling is matched and is what the upstream gets. A path that climbs
//! above the root is refused, and so is one with a `%` that no two hexadecimal digits follow. Encoded slashes, other
//! escapes and repeated slashes mean something to some servers, so they are left as they are.

use std::borrow::Cow;

/// A path that has no normal spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path climbs above the root")]
    AboveRoot,
    #[error("the path has a '%' without two hexadecimal digits")]
    Escape,
}

/// The normal spelling of an absolute path (no query).
pub fn normalise(path: &str) -> Result<Cow<'_, str>, PathError> {
    if !needs_work(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode_unreserved(path)?;
    remove_dot_segments(&decoded).map(Cow::Owned)
}

/// Whether the path holds an escape or a segment that begins with a dot.
fn needs_work(path: &[u8]) -> bool {
    let mut previous = 0;
    for &byte in path {
        if byte == b'%' || (byte == b'.' && previous == b'/') {
            return true;
        }
        previous = byte;
    }
    false
}

fn decode_unreserved(path: &str) -> Result<String, PathError> {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        decoded.push_str(&rest[..at]);
        rest = &rest[at..];
        let byte = escape(rest.as_bytes()).ok_or(PathError::Escape)?;
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            decoded.push(char::from(byte));
        } else {
            decoded.push_str(&rest[..3]);
        }
        rest = &rest[3..];
    }
    decoded.push_str(rest);
    Ok(decoded)
}

/// The byte that an escape at the start of `text` stands for.
fn escape(text: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*text.get(at)?).to_digit(16);
    u8::try_from(digit(1)? * 16 + digit(2)?).ok()
}

fn remove_dot_segments(path: &str) -> Result<String, PathError> {
    let mut kept = String::with_capacity(path.len());
    let mut segments = path.split('/').peekable();
    // What stands before the first slash of an absolute path is empty.
    segments.next();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." if last => kept.push('/'),
            "." => {}
            ".." => {
                let parent = kept.rfind('/').ok_or(PathError::AboveRoot)?;
                kept.truncate(parent);
                if last {
                    kept.push('/');
                }
            }
            segment => {
                kept.push('/');
                kept.push_str(segment);
            }
        }
    }
    Ok(kept)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_paths_are_borrowed() {
        for path in ["/", "/health", "/a/b.c/d..e", "//x//", "/a...b/"] {
            assert!(matches!(normalise(path), Ok(Cow::Borrowed(same)) if same == path), "{path}");
        }
    }

    #[test]
    fn dot_segments_are_removed_however_they_are_spelt() {
        for (path, normal) in [
            ("/health/../admin", "/admin"),
            ("/health/%2e%2e/admin", "/admin"),
            ("/health/.%2E/admin", "/admin"),
            ("/a/./b", "/a/b"),
            ("/a/.", "/a/"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/.", "/"),
            ("/a/b/../../c", "/c"),
            ("/a//../b", "/a/b"),
            ("/.well-known/x", "/.well-known/x"),
            ("/a/...", "/a/..."),
        ] {
            assert_eq!(normalise(path).unwrap(), normal, "{path}");
        }
    }

    #[test]
    fn unreserved_escapes_are_decoded_and_others_kept() {
        for (path, normal) in [
            ("/%61dmin", "/admin"),
            ("/a%2Fb", "/a%2Fb"),
            ("/a%2fb%5c", "/a%2fb%5c"),
            ("/%7Euser", "/~user"),
            ("/%252e%252e/x", "/%252e%252e/x"),
            ("/%E4%B8%AD", "/%E4%B8%AD"),
        ] {
            assert_eq!(normalise(path).unwrap(), normal, "{path}");
        }
    }

    #[test]
    fn climbing_above_the_root_is_refused() {
        for path in ["/..", "/../etc", "/a/../../b", "/%2e%2e/x", "/./../x"] {
            assert_eq!(normalise(path), Err(PathError::AboveRoot), "{path}");
        }
    }

    #[test]
    fn malformed_escapes_are_refused() {
        // Decoding one escape must not complete another: `%2` and `e` would make a dot.
        for path in ["/100%", "/%zz", "/%4", "/%2%65%2%65/x", "/%+1"] {
            assert_eq!(normalise(path), Err(PathError::Escape), "{path}");
        }
    }

    #[test]
    fn normalising_twice_changes_nothing() {
        for path in ["/%2e/%2e%2e", "/a/%2e%2e/%2e", "/x/%25%32%65/..", "/a/b/%2e%2e/c/./d"] {
            if let Ok(once) = normalise(path) {
                assert_eq!(normalise(&once).unwrap(), once, "{path}");
            }
        }
    }
}
