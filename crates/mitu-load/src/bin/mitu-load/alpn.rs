//! The ALPN decision alone, in nanoseconds: cached and not, for few and many protocols, for several client orders.

use std::hint::black_box;
use std::time::Instant;

use clap::Args;
use mitu_load::error::LoadError;
use mitu_tls::alpn::{AlpnTable, Preference};
use serde::Serialize;

/// Lists that are decided once each, so that every decision misses; many times the cache's size.
const DISTINCT_LISTS: usize = 50_000;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Numbers of configured protocols, comma separated
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    protocols: Vec<usize>,
    /// Decisions in a batch that hits the cache
    #[arg(long, default_value = "200000")]
    decisions: usize,
    /// Batches; the median is reported
    #[arg(long, default_value = "11")]
    batches: usize,
}

#[derive(Debug, Serialize)]
pub struct Costs {
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    protocols: usize,
    /// What the client offers.
    client: &'static str,
    offered: usize,
    hit_ns: f64,
    miss_ns: f64,
    /// Share of the decisions behind `miss_ns` that did miss the cache.
    missed: f64,
    chosen: Option<usize>,
}

/// Names that a client offers, as bytes one after another: what a ClientHello is to the table.
struct Offer(Vec<Vec<u8>>);

impl Offer {
    fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(Vec::as_slice)
    }
}

pub fn run(arguments: &Arguments) -> Result<Costs, LoadError> {
    let mut rows = Vec::new();
    for &count in &arguments.protocols {
        let names = protocols(count);
        let table =
            AlpnTable::new(names.iter().map(String::as_str)).map_err(|error| LoadError::Usage(error.to_string()))?;
        for (client, offer) in clients(&names) {
            rows.push(measure(arguments, &table, count, client, &offer));
        }
    }
    Ok(Costs { rows })
}

/// `h2` first, then private names, as a listener with many services would have.
fn protocols(count: usize) -> Vec<String> {
    let private = (1..count).map(|number| format!("private/{number}"));
    std::iter::once("h2".to_owned()).chain(private).collect()
}

/// What clients offer: a browser's two names in both orders, a long list with the match last, nothing in common.
fn clients(names: &[String]) -> Vec<(&'static str, Vec<String>)> {
    let own = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let last = names.last().cloned().unwrap_or_default();
    let mut long: Vec<String> = (0..7).map(|number| format!("unknown/{number}")).collect();
    long.push(last);
    vec![
        ("h2, http/1.1", own(&["h2", "http/1.1"])),
        ("http/1.1, h2", own(&["http/1.1", "h2"])),
        ("8 names, match last", long),
        ("nothing in common", own(&["spdy/3.1", "http/1.0"])),
    ]
}

fn measure(arguments: &Arguments, table: &AlpnTable, protocols: usize, client: &'static str, offer: &[String]) -> Row {
    let common = Offer(offer.iter().map(|name| name.clone().into_bytes()).collect());
    let preference = Preference::default();
    let chosen = table.decide(&preference, || common.names()).chosen;
    let hit_ns = median(arguments.batches, || {
        let started = Instant::now();
        for _ in 0..arguments.decisions.max(1) {
            black_box(table.decide(&preference, || black_box(&common).names()));
        }
        started.elapsed().as_nanos() as f64 / arguments.decisions.max(1) as f64
    });

    // One name is different in each list, so every list is new while the decision stays what it was.
    let lists: Vec<Offer> = (0..DISTINCT_LISTS).map(|number| distinct(offer, number, table)).collect();
    let mut missed = 0;
    let miss_ns = median(arguments.batches, || {
        let started = Instant::now();
        for list in &lists {
            missed += usize::from(!black_box(table.decide(&preference, || list.names())).cached);
        }
        started.elapsed().as_nanos() as f64 / lists.len() as f64
    });
    let decisions = arguments.batches.max(1) * lists.len();
    Row { protocols, client, offered: offer.len(), hit_ns, miss_ns, missed: missed as f64 / decisions as f64, chosen }
}

/// `offer` with the first of its names that the table does not serve made unique.
fn distinct(offer: &[String], number: usize, table: &AlpnTable) -> Offer {
    let preference = Preference::default();
    let unserved = |name: &String| table.decide(&preference, || std::iter::once(name.as_bytes())).chosen.is_none();
    let replaced = offer.iter().position(unserved).unwrap_or(offer.len() - 1);
    let mut names: Vec<Vec<u8>> = offer.iter().map(|name| name.clone().into_bytes()).collect();
    names[replaced] = format!("new/{number:05}").into_bytes();
    Offer(names)
}

fn median(batches: usize, batch: impl FnMut() -> f64) -> f64 {
    let mut results: Vec<f64> = std::iter::repeat_with(batch).take(batches.max(1)).collect();
    results.sort_by(f64::total_cmp);
    results[results.len() / 2]
}
