//! The access log: one JSON object a line, written by a thread of its own.
//!
//! A worker formats its line and tries to queue it; when the writer cannot keep up the line is dropped and counted,
//! and no connection ever waits. A disk that is full, or a file that has gone, costs lines, counted as well, and the
//! writer carries on as soon as writing works again.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use serde::Serialize;

use crate::connections::AccessLogMetrics;

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Stdout,
    Stderr,
    File(PathBuf),
}

impl Target {
    pub fn parse(path: &str) -> Self {
        match path {
            "stdout" => Self::Stdout,
            "stderr" => Self::Stderr,
            file => Self::File(file.into()),
        }
    }

    fn open(&self) -> io::Result<Box<dyn Write + Send>> {
        Ok(match self {
            Self::Stdout => Box::new(io::stdout()),
            Self::Stderr => Box::new(io::stderr()),
            Self::File(path) => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
        })
    }
}

#[derive(Debug)]
pub struct AccessLog {
    queue: Sender<Vec<u8>>,
    /// Disconnected once the writer has ended.
    ended: Receiver<()>,
    reopen: Arc<AtomicBool>,
    requests: bool,
    connections: bool,
    metrics: AccessLogMetrics,
}

impl AccessLog {
    /// Opens `target` and starts its writer. `capacity`: lines that may wait.
    pub fn open(
        target: Target,
        capacity: usize,
        requests: bool,
        connections: bool,
        metrics: AccessLogMetrics,
    ) -> io::Result<Self> {
        let output = target.open()?;
        let (queue, lines) = bounded(capacity);
        let (end, ended) = bounded(0);
        let reopen = Arc::<AtomicBool>::default();
        let (write_failed, wanted) = (metrics.dropped_write_failed.clone(), reopen.clone());
        thread::Builder::new().name("mitu-access-log".into()).spawn(move || {
            let _end = end;
            write_lines(&target, output, &lines, &wanted, &write_failed);
        })?;
        Ok(Self { queue, ended, reopen, requests, connections, metrics })
    }

    /// Whether a line is wanted for each request.
    pub fn requests_enabled(&self) -> bool {
        self.requests
    }

    /// Whether a line is wanted for each connection.
    pub fn connections_enabled(&self) -> bool {
        self.connections
    }

    /// Queues one line; never blocks.
    pub fn write(&self, record: &impl Serialize) {
        let mut line = Vec::with_capacity(512);
        if serde_json::to_writer(&mut line, record).is_err() {
            self.metrics.dropped_write_failed.inc();
            return;
        }
        line.push(b'\n');
        if self.queue.try_send(line).is_err() {
            self.metrics.dropped_queue_full.inc();
        }
    }

    /// Opens the file's path anew, after logrotate has moved the old file away.
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::Relaxed);
        // Wakes the writer; a queue that is full keeps it awake.
        let _ = self.queue.try_send(Vec::new());
    }

    /// Ends the log and waits until what is queued is written, for `limit` at most: nobody may be reading it. A log
    /// that is merely dropped is written to its end too, by its own thread.
    pub fn finish(self, limit: Duration) {
        drop(self.queue);
        let _ = self.ended.recv_timeout(limit);
    }
}

/// Lines written with one system call at most: enough to amortise it, little enough to be on disk soon.
const BATCH_BYTES: usize = 64 * 1024;

fn write_lines(
    target: &Target,
    mut output: Box<dyn Write + Send>,
    lines: &Receiver<Vec<u8>>,
    reopen: &AtomicBool,
    write_failed: &prometheus::IntCounter,
) {
    let mut batch = Vec::with_capacity(BATCH_BYTES);
    while let Ok(first) = lines.recv() {
        let mut count = 0;
        for line in std::iter::once(first).chain(lines.try_iter()) {
            batch.extend_from_slice(&line);
            count += u64::from(!line.is_empty());
            if batch.len() >= BATCH_BYTES {
                break;
            }
        }
        if reopen.swap(false, Ordering::Relaxed)
            && let Ok(opened) = target.open()
        {
            output = opened;
        }
        if output.write_all(&batch).and_then(|()| output.flush()).is_err() {
            write_failed.inc_by(count);
            reopen.store(true, Ordering::Relaxed);
        }
        batch.clear();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Telemetry;

    const LONG: Duration = Duration::from_secs(60);

    #[derive(Serialize)]
    struct Line {
        n: u32,
    }

    fn open(path: &std::path::Path, capacity: usize) -> (AccessLog, AccessLogMetrics) {
        let metrics = Telemetry::new().unwrap().connections.access_log();
        let target = Target::parse(path.to_str().unwrap());
        (AccessLog::open(target, capacity, true, true, metrics.clone()).unwrap(), metrics)
    }

    fn temporary(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("mitu-access-log-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(name);
        let _ = std::fs::remove_file(&path);
        path
    }

    #[test]
    fn writes_every_line_before_it_ends() {
        let path = temporary("lines");
        let (log, metrics) = open(&path, 10_000);
        (0..5_000).for_each(|n| log.write(&Line { n }));
        log.finish(LONG);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 5_000);
        assert_eq!(text.lines().last(), Some(r#"{"n":4999}"#));
        assert_eq!(metrics.dropped_queue_full.get(), 0);
    }

    #[test]
    fn a_full_disk_costs_lines_and_is_counted() {
        let (log, metrics) = open(std::path::Path::new("/dev/full"), 10_000);
        (0..100).for_each(|n| log.write(&Line { n }));
        log.finish(LONG);
        assert_eq!(metrics.dropped_write_failed.get(), 100);
    }

    #[test]
    fn reopen_follows_a_rotated_file() {
        let path = temporary("rotated");
        let moved = path.with_extension("1");
        let (log, _) = open(&path, 16);
        log.write(&Line { n: 1 });
        while std::fs::read_to_string(&path).unwrap().is_empty() {
            thread::yield_now();
        }
        std::fs::rename(&path, &moved).unwrap();
        log.reopen();
        log.write(&Line { n: 2 });
        log.finish(LONG);
        assert_eq!(std::fs::read_to_string(&moved).unwrap(), "{\"n\":1}\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"n\":2}\n");
    }

    #[test]
    fn a_pipe_that_nobody_reads_holds_nothing_up() {
        let (_reader, writer) = io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&writer));
        let (log, metrics) = open(std::path::Path::new(&path), 16);
        while metrics.dropped_queue_full.get() == 0 {
            log.write(&Line { n: 0 });
        }
        log.reopen();
        log.finish(Duration::from_millis(10));
    }
}
