//! Which worker gets a packet. The kernel would choose by the client's address, which changes when the client moves to
//! another network; the identifier of the connection does not. So this side's identifiers begin with the number of their
//! worker, hidden among random ones, and a filter has the kernel choose the socket by it.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use nix::libc::{sock_filter, sock_fprog};
use nix::sys::socket::SetSockOpt;
use nix::sys::socket::sockopt::AttachReusePortCbpf;
use quinn_proto::{ConnectionId, ConnectionIdGenerator, RandomConnectionIdGenerator};
use socket2::{Domain, Protocol, Socket, Type};

use super::SOCKET_BUFFER;

/// Bytes of an identifier, of which the first two are the worker's number and a multiple of how many there are.
const LENGTH: usize = 8;

/// Binds one socket for each of `workers` to an address that nobody else has, and has the kernel choose between them.
pub fn bind(address: SocketAddr, workers: usize) -> io::Result<Vec<UdpSocket>> {
    let open = || Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP));
    let prepare = |socket: &Socket| if address.is_ipv6() { socket.set_only_v6(false) } else { Ok(()) };
    // With SO_REUSEPORT alone, a forgotten process would silently take its share.
    let probe = open()?;
    prepare(&probe)?;
    probe.bind(&address.into())?;
    drop(probe);
    let mut sockets: Vec<UdpSocket> = Vec::with_capacity(workers);
    for _ in 0..workers {
        let address = sockets.first().map_or(Ok(address), UdpSocket::local_addr)?;
        let socket = open()?;
        prepare(&socket)?;
        socket.set_reuse_port(true)?;
        // As much of it as the kernel allows.
        socket.set_recv_buffer_size(SOCKET_BUFFER)?;
        socket.set_send_buffer_size(SOCKET_BUFFER)?;
        socket.bind(&address.into())?;
        socket.set_nonblocking(true)?;
        sockets.push(socket.into());
    }
    if let Some(first) = sockets.first()
        && workers > 1
    {
        steer(first, workers as u32)?;
    }
    Ok(sockets)
}

/// Has the kernel give a packet to the socket whose number is its destination's first two bytes, modulo the sockets' count.
/// Those of a first packet are the client's, and random.
fn steer(socket: &UdpSocket, count: u32) -> io::Result<()> {
    const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
    const LOAD_HALF: u16 = 0x28; // BPF_LD | BPF_H | BPF_ABS
    const JUMP_IF_SET: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
    const MODULO: u16 = 0x94; // BPF_ALU | BPF_MOD | BPF_K
    const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
    const RETURN: u16 = 0x16; // BPF_RET | BPF_A
    const LONG_HEADER: u32 = 0x80;
    // Behind the first byte; in a long header, behind the version and the length as well (RFC 9000, section 17).
    const SHORT: u32 = 1;
    const LONG: u32 = 6;
    let one = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let mut program = [
        one(LOAD_BYTE, 0, 0, 0),
        one(JUMP_IF_SET, 2, 0, LONG_HEADER),
        one(LOAD_HALF, 0, 0, SHORT),
        one(JUMP, 0, 0, 1),
        one(LOAD_HALF, 0, 0, LONG),
        one(MODULO, 0, 0, count),
        one(RETURN, 0, 0, 0),
    ];
    let program = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    AttachReusePortCbpf.set(socket, &program).map_err(io::Error::from)
}

/// Identifiers of one worker's connections.
pub struct Ids {
    random: RandomConnectionIdGenerator,
    worker: u16,
    count: u16,
}

impl Ids {
    pub fn new(worker: usize, count: usize) -> Self {
        let small = |number| u16::try_from(number).unwrap_or(u16::MAX);
        Self { random: RandomConnectionIdGenerator::new(LENGTH), worker: small(worker), count: small(count).max(1) }
    }
}

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id: [u8; LENGTH] = [0; LENGTH];
        id.copy_from_slice(&self.random.generate_cid());
        let random = u16::from_be_bytes([id[0], id[1]]);
        // The number nearest below that is this worker's.
        let own = (random / self.count * self.count).checked_add(self.worker).unwrap_or(self.worker);
        id[..2].copy_from_slice(&own.to_be_bytes());
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        LENGTH
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn receiver(sockets: &[UdpSocket]) -> Vec<usize> {
        let mut buffer = [0; 64];
        (0..sockets.len()).filter(|&index| sockets[index].recv(&mut buffer).is_ok()).collect()
    }

    #[test]
    fn packets_find_the_worker_that_gave_the_identifier() {
        const WORKERS: usize = 3;
        let sockets = bind("127.0.0.1:0".parse().unwrap(), WORKERS).unwrap();
        let address = sockets[0].local_addr().unwrap();
        for worker in 0..WORKERS {
            let mut ids = Ids::new(worker, WORKERS);
            for _ in 0..20 {
                let id = ids.generate_cid();
                // Each from another address, as after a move.
                let client = UdpSocket::bind("127.0.0.1:0").unwrap();
                let short = [&[0x40], &id[..], b"rest"].concat();
                let long = [&[0xc0, 0, 0, 0, 1, LENGTH as u8], &id[..], b"rest"].concat();
                for packet in [short, long] {
                    client.send_to(&packet, address).unwrap();
                    assert_eq!(receiver(&sockets), [worker]);
                }
            }
        }
    }

    #[test]
    fn identifiers_differ() {
        let mut ids = Ids::new(1, 2);
        let made: std::collections::HashSet<Vec<u8>> = (0..1000).map(|_| ids.generate_cid().to_vec()).collect();
        assert_eq!(made.len(), 1000);
    }

    #[test]
    fn a_port_that_is_taken_is_an_error() {
        let taken = bind("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        let again = bind(taken[0].local_addr().unwrap(), 2);
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
