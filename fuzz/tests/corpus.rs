//! Every target on its corpus, and on what a few random changes make of it.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use mitu_fuzz::{ALPN_LIST, CLIENT_HELLO, CONFIGURATION, MQTT_CONNECT, PROXY_HEADER, Target};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

const CASES: u32 = 20_000;

fn corpus((folder, suffix): (&str, &str)) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.to_string_lossy().ends_with(suffix));
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// One change: a piece of the input is replaced, by bytes or by a piece of another input.
#[derive(Debug, Clone)]
struct Change {
    at: Index,
    length: usize,
    bytes: Vec<u8>,
    from: Option<(Index, Index, usize)>,
}

fn change() -> impl Strategy<Value = Change> {
    let bytes = prop_oneof![vec(any::<u8>(), 0..4), vec(prop_oneof![Just(0), Just(0xff), Just(1), Just(0x7f)], 0..3)];
    let from = proptest::option::weighted(0.2, (any::<Index>(), any::<Index>(), 0_usize..64));
    (any::<Index>(), 0_usize..6, bytes, from).prop_map(|(at, length, bytes, from)| Change { at, length, bytes, from })
}

fn apply(input: &mut Vec<u8>, change: &Change, corpus: &[Vec<u8>]) {
    let at = change.at.index(input.len() + 1);
    let end = (at + change.length).min(input.len());
    let piece = match &change.from {
        None => change.bytes.clone(),
        Some((which, begin, length)) => {
            let other = &corpus[which.index(corpus.len())];
            let begin = begin.index(other.len() + 1);
            other[begin..(begin + length).min(other.len())].to_vec()
        }
    };
    input.splice(at..end, piece);
}

fn hold(target: Target) {
    let corpus = corpus(target.corpus);
    assert!(corpus.len() >= 4, "{target:?} has no corpus");
    for input in &corpus {
        (target.run)(input);
    }
    // The same changes each time: new ones are for `make fuzz` to find, not for who happens to run the tests.
    let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, random);
    let inputs = (any::<Index>(), vec(change(), 1..6));
    runner
        .run(&inputs, |(which, changes)| {
            let mut input = corpus[which.index(corpus.len())].clone();
            for change in &changes {
                apply(&mut input, change, &corpus);
            }
            (target.run)(&input);
            Ok(())
        })
        .unwrap();
}

#[test]
fn client_hellos() {
    hold(CLIENT_HELLO);
}

#[test]
fn proxy_headers() {
    hold(PROXY_HEADER);
}

#[test]
fn mqtt_connects() {
    hold(MQTT_CONNECT);
}

#[test]
fn alpn_lists() {
    hold(ALPN_LIST);
}

#[test]
fn configurations() {
    hold(CONFIGURATION);
}
