//! The access log: one JSON object a line, written by a thread of its own.
//!
//! A worker formats its line and tries to queue it; when the writer cannot keep up the line is dropped and counted,
//! and no connection ever waits. A disk that is full, or a file that has gone, costs lines, counted as well, and the
//! writer carries on as soon as writing works again.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use serde::Serialize;
use serde_json::ser::Formatter;

use crate::connections::AccessLogMetrics;

/// Lines written with one system call at most: enough to amortise it, little enough to be on disk soon.
const BATCH_BYTES: usize = 64 * 1024;

/// How often a reader that takes nothing (a FIFO's) is tried again, and for how long once the log has ended.
const RETRY: Duration = Duration::from_millis(20);
const LAST_LINES: Duration = Duration::from_secs(1);

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

    /// A FIFO without a reader is an error, not a wait.
    fn open(&self) -> io::Result<Box<dyn Write + Send>> {
        Ok(match self {
            Self::Stdout => Box::new(io::stdout()),
            Self::Stderr => Box::new(io::stderr()),
            Self::File(path) => {
                Box::new(OpenOptions::new().create(true).append(true).custom_flags(libc::O_NONBLOCK).open(path)?)
            }
        })
    }
}

#[derive(Debug)]
pub struct AccessLog {
    queue: Sender<Vec<u8>>,
    /// Disconnected once the writer has ended.
    ended: Receiver<()>,
    reopen: Arc<AtomicBool>,
    ending: Ending,
    requests: bool,
    connections: bool,
    metrics: AccessLogMetrics,
}

/// Set when the log is dropped: from then on nobody is waited for who reads nothing.
#[derive(Debug, Default)]
struct Ending(Arc<AtomicBool>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
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
        let (reopen, ending) = (Arc::<AtomicBool>::default(), Ending::default());
        let mut writer = Writer {
            target,
            output,
            torn: false,
            stuck_since: None,
            reopen: reopen.clone(),
            ending: ending.0.clone(),
            write_failed: metrics.dropped_write_failed.clone(),
        };
        thread::Builder::new().name("mitu-access-log".into()).spawn(move || {
            let _end = end;
            writer.run(&lines);
        })?;
        Ok(Self { queue, ended, reopen, ending, requests, connections, metrics })
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
        if record.serialize(&mut serde_json::Serializer::with_formatter(&mut line, Plain)).is_err() {
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
        drop((self.queue, self.ending));
        let _ = self.ended.recv_timeout(limit);
    }
}

/// JSON without a single control character: terminals obey DEL and the 8-bit ones as well.
struct Plain;

impl Formatter for Plain {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if fragment.bytes().all(|byte| byte < 0x7f) {
            return writer.write_all(fragment.as_bytes());
        }
        for char in fragment.chars() {
            if char.is_control() {
                write!(writer, "\\u{:04x}", u32::from(char))?;
            } else {
                write!(writer, "{char}")?;
            }
        }
        Ok(())
    }
}

struct Writer {
    target: Target,
    output: Box<dyn Write + Send>,
    /// The last thing written was a part of a line.
    torn: bool,
    /// Since when the reader has taken nothing.
    stuck_since: Option<Instant>,
    reopen: Arc<AtomicBool>,
    ending: Arc<AtomicBool>,
    write_failed: prometheus::IntCounter,
}

impl Writer {
    fn run(&mut self, lines: &Receiver<Vec<u8>>) {
        let mut batch = Vec::with_capacity(BATCH_BYTES);
        while let Ok(first) = lines.recv() {
            for line in std::iter::once(first).chain(lines.try_iter()) {
                batch.extend_from_slice(&line);
                if batch.len() >= BATCH_BYTES {
                    break;
                }
            }
            if self.reopen.swap(false, Ordering::Relaxed) && self.open() {
                self.torn = false;
            }
            let written = self.write(&batch);
            if written < batch.len() {
                let lost = batch[written..].iter().filter(|&&byte| byte == b'\n').count();
                self.write_failed.inc_by(lost as u64);
                self.open();
            }
            batch.clear();
        }
    }

    fn open(&mut self) -> bool {
        let opened = self.target.open();
        opened.map(|opened| self.output = opened).is_ok()
    }

    /// Writes a batch of lines, the rest of a torn one ended first; how much of it could be written.
    fn write(&mut self, batch: &[u8]) -> usize {
        if self.torn {
            self.torn = self.put(b"\n") == 0;
        }
        let written = if self.torn { 0 } else { self.put(batch) };
        if written > 0 {
            self.torn = batch[written - 1] != b'\n';
        }
        if self.output.flush().is_ok() { written } else { 0 }
    }

    fn put(&mut self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while written < bytes.len() {
            match self.output.write(&bytes[written..]) {
                Ok(0) => break,
                Ok(count) => {
                    written += count;
                    self.stuck_since = None;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.waits() => {}
                Err(_) => break,
            }
        }
        written
    }

    /// Waits a little for a reader that takes nothing; false when the log has ended and that took long enough.
    fn waits(&mut self) -> bool {
        let since = *self.stuck_since.get_or_insert_with(Instant::now);
        if self.ending.load(Ordering::Relaxed) && since.elapsed() > LAST_LINES {
            return false;
        }
        thread::sleep(RETRY);
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Telemetry;
    use std::sync::atomic::AtomicUsize;

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
    fn a_torn_line_is_ended() {
        struct Disk {
            room: Arc<AtomicUsize>,
            content: Arc<parking_lot::Mutex<Vec<u8>>>,
        }
        impl Write for Disk {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let count = bytes.len().min(self.room.load(Ordering::Relaxed));
                self.room.fetch_sub(count, Ordering::Relaxed);
                self.content.lock().extend_from_slice(&bytes[..count]);
                if count == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(count) }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let room = Arc::new(AtomicUsize::new(12));
        let content = Arc::<parking_lot::Mutex<Vec<u8>>>::default();
        let mut writer = Writer {
            target: Target::Stdout,
            output: Box::new(Disk { room: room.clone(), content: content.clone() }),
            torn: false,
            stuck_since: None,
            reopen: Arc::default(),
            ending: Arc::default(),
            write_failed: Telemetry::new().unwrap().connections.access_log().dropped_write_failed,
        };
        assert_eq!(writer.write(b"{\"n\":1}\n{\"n\":2}\n"), 12);
        assert_eq!(writer.write(b"{\"n\":3}\n"), 0);
        room.store(100, Ordering::Relaxed);
        assert_eq!(writer.write(b"{\"n\":4}\n"), 8);
        assert_eq!(&**content.lock(), b"{\"n\":1}\n{\"n\"\n{\"n\":4}\n");
    }

    #[test]
    fn no_control_character_is_written_as_it_is() {
        #[derive(Serialize)]
        struct Named {
            name: &'static str,
        }
        let path = temporary("controls");
        let (log, _) = open(&path, 16);
        log.write(&Named { name: "\u{1b}[31m \u{7f} \u{9b}2J \n\" \\ é \u{1f600}" });
        log.finish(LONG);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"name\":\"\\u001b[31m \\u007f \\u009b2J \\n\\\" \\\\ é \u{1f600}\"}\n");
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
