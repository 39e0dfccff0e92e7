//! Listening sockets: bound so that no other program shares the port, and closed so that no client is lost.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, TcpKeepalive, Type};

/// How long a client that stays silent may stay before the kernel asks whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Binds `workers` sockets to one address, among which the kernel spreads the connections once they [`listen`].
///
/// `ours`: whether a live listener of this process has the address already. Otherwise it must be free: with
/// `SO_REUSEPORT` alone, a forgotten process would silently take its share of the connections.
pub fn bind(address: SocketAddr, workers: usize, ours: bool) -> io::Result<Vec<TcpListener>> {
    if !ours && address.port() != 0 {
        let probe = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        prepare(&probe, address)?;
        probe.bind(&address.into())?;
        probe.listen(1)?;
    }
    let mut bound: Vec<TcpListener> = Vec::with_capacity(workers);
    for _ in 0..workers {
        let address = bound.first().map_or(Ok(address), TcpListener::local_addr)?;
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        prepare(&socket, address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        bound.push(configure(socket.into())?);
    }
    Ok(bound)
}

/// Lets clients connect. From here on a socket must not be closed without being emptied.
pub fn listen(bound: &[TcpListener], backlog: u32) -> io::Result<()> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    bound.iter().try_for_each(|socket| SockRef::from(socket).listen(backlog))
}

/// Takes over inherited sockets: as many for each worker as were handed in, shared where there are fewer.
pub fn adopt(inherited: Vec<TcpListener>, workers: usize) -> io::Result<Vec<TcpListener>> {
    let shared = inherited.len().min(workers);
    let mut adopted = inherited;
    for worker in shared..workers {
        adopted.push(adopted[worker % shared].try_clone()?);
    }
    adopted.into_iter().map(configure).collect()
}

fn prepare(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `[::]` serves IPv4 as well, whatever the system's default.
        socket.set_only_v6(false)?;
    }
    Ok(())
}

/// Options that accepted sockets inherit from the listening one: set once here instead of once for each connection.
fn configure(listener: TcpListener) -> io::Result<TcpListener> {
    let socket = SockRef::from(&listener);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Lets no further connection begin, while those under way still complete and can be accepted.
///
/// Closing a listening socket resets whatever waits in its queue. So a filter drops each segment that has SYN and not
/// ACK before the kernel sees it; its sender tries again after a second and then finds the port closed, or its new
/// owner.
pub fn stop_new_connections(listener: &impl std::os::fd::AsFd) -> io::Result<()> {
    const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
    const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
    const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const TCP_FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    SockRef::from(listener).attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, TCP_FLAGS),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::net::TcpStream;

    fn loopback() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    fn serving(address: SocketAddr, workers: usize, ours: bool) -> io::Result<Vec<TcpListener>> {
        let bound = bind(address, workers, ours)?;
        listen(&bound, 16).map(|()| bound)
    }

    #[test]
    fn nobody_can_connect_before_it_listens() {
        let bound = bind(loopback(), 1, false).unwrap();
        let refused = TcpStream::connect(bound[0].local_addr().unwrap());
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn workers_share_one_port() {
        let bound = serving(loopback(), 3, false).unwrap();
        let ports: Vec<_> = bound.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        assert_eq!(ports.len(), 3);
        assert!(ports.iter().all(|port| *port == ports[0] && *port != 0));
    }

    #[test]
    fn a_port_that_is_taken_is_an_error() {
        let taken = serving(loopback(), 1, false).unwrap();
        let address = taken[0].local_addr().unwrap();
        assert_eq!(serving(address, 1, false).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert!(serving(address, 1, true).is_ok());
    }

    #[test]
    fn stopping_keeps_what_has_begun_and_lets_nothing_begin() {
        let listener = serving(loopback(), 1, false).unwrap().remove(0);
        let address = listener.local_addr().unwrap();
        let _waiting = TcpStream::connect(address).unwrap();
        stop_new_connections(&listener).unwrap();
        let late = TcpStream::connect_timeout(&address, Duration::from_millis(100));
        assert_eq!(late.unwrap_err().kind(), ErrorKind::TimedOut);
        listener.set_nonblocking(false).unwrap();
        assert!(listener.accept().is_ok());
    }
}
