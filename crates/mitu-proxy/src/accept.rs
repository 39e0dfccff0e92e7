//! The accept loop: one for each listener and worker. It takes a slot, spawns the connection and goes on; it never
//! waits for a client.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout_at};

use crate::files;
use crate::gateway::{self, Intake};
use crate::listener::LiveListener;
use crate::overload::Step;
use crate::socket::stop_new_connections;
use crate::worker::Worker;

/// How many connections to accept before looking at others.
const IN_A_ROW: u64 = 16;

/// How long to leave the kernel alone when there are no descriptors left, or no memory.
const EXHAUSTED: Duration = Duration::from_millis(20);

/// How long connections that had begun when the drain began may take to be ready for accepting.
const LAST_ACCEPTS: Duration = Duration::from_millis(100);

/// Accepts until the listener drains, then empties its queue and closes the socket.
///
/// `inherited`: somebody else may hold the socket too (systemd, the process that takes over), and takes what comes next.
pub async fn run(socket: StdListener, live: Arc<LiveListener>, worker: Arc<Worker>, inherited: bool) {
    let Ok(socket) = TcpListener::from_std(socket) else {
        return;
    };
    let drain = live.drain.subscribe();
    let mut watched = drain.clone();
    let mut started = pin!(watched.started());
    let mut row = Row::default();
    while !drain.draining() {
        tokio::select! {
            biased;
            accepted = socket.accept() => intake(accepted, &live, &worker).await,
            () = &mut started => {}
        }
        row.step().await;
    }
    let deadline = Instant::now() + LAST_ACCEPTS;
    if inherited {
        return empty(socket, &live, &worker, deadline).await;
    }
    // Without the filter (a kernel without BPF) the queue is emptied all the same; only a last race is left.
    let _ = stop_new_connections(&socket);
    while let Ok(accepted) = timeout_at(deadline, socket.accept()).await {
        intake(accepted, &live, &worker).await;
        row.step().await;
    }
}

/// Takes what waits in the queue now: if nobody else holds the socket, it is lost otherwise. In a flood the queue is never
/// empty: what is there after `deadline` has come since.
async fn empty(socket: TcpListener, live: &Arc<LiveListener>, worker: &Arc<Worker>, deadline: Instant) {
    let Ok(socket) = socket.into_std() else {
        return;
    };
    let mut row = Row::default();
    while Instant::now() < deadline
        && let Ok((tcp, peer)) = socket.accept()
    {
        let tcp = tcp.set_nonblocking(true).and_then(|()| TcpStream::from_std(tcp));
        intake(tcp.map(|tcp| (tcp, peer)), live, worker).await;
        row.step().await;
    }
}

/// Established connections are not to wait for a whole queue of new ones.
#[derive(Default)]
struct Row(u64);

impl Row {
    async fn step(&mut self) {
        self.0 += 1;
        if self.0.is_multiple_of(IN_A_ROW) {
            yield_now().await;
        }
    }
}

async fn intake(accepted: io::Result<(TcpStream, SocketAddr)>, live: &Arc<LiveListener>, worker: &Arc<Worker>) {
    let accepted_at = std::time::Instant::now();
    let listener = live.current.load_full();
    match accepted.and_then(|(tcp, peer)| Ok((files::admit(tcp)?, peer))) {
        Ok((tcp, peer)) => {
            listener.metrics.accepted.inc();
            // Closing is to cost neither side anything more.
            if live.drain.step() == Step::RejectConnections {
                listener.metrics.refused_overload.inc();
                let _ = tcp.set_zero_linger();
                return;
            }
            // Over the limit: closed at once, and counted.
            if let Some(slot) = live.take_slot(&listener) {
                let drain = live.drain.subscribe();
                let intake = Intake {
                    tcp,
                    peer,
                    address: live.address,
                    listener,
                    slot,
                    drain,
                    worker: worker.clone(),
                    accepted_at,
                };
                tokio::spawn(gateway::connection(intake));
            }
        }
        // The client gave up between the kernel's accept and ours.
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
        Err(_) => {
            listener.metrics.refused_resources.inc();
            sleep(EXHAUSTED).await;
        }
    }
}
