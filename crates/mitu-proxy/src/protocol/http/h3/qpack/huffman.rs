//! The Huffman code of HPACK and QPACK (RFC 7541, appendix B), read four bits at a time.

use std::sync::LazyLock;

use bytes::{BufMut, BytesMut};

/// How many bits each byte's code has, and that of the end, which is no part of any string. Shorter codes come first, and
/// among those of one length the lower byte's: the code is canonical, so that this tells all of it.
pub const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28,
    28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6,
    12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15,
    5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20,
    22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22,
    23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26,
    27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// A node of the code's tree: none of it is a byte's.
#[derive(Debug, Clone, Copy, Default)]
struct Node {
    /// Where four more bits lead, and the byte that they complete: the shortest code has five.
    steps: [Step; 16],
    /// Whether a string may end here: what is left of its last byte is the beginning of the end's code, all ones.
    ends: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Step {
    node: u8,
    byte: Option<u8>,
    /// There is no such code.
    broken: bool,
}

static NODES: LazyLock<Vec<Node>> = LazyLock::new(nodes);

/// The tree as it is told by [`LENGTHS`], and every step through it.
fn nodes() -> Vec<Node> {
    #[derive(Clone, Copy)]
    enum Child {
        None,
        Node(usize),
        Symbol(usize),
    }
    let mut order: Vec<usize> = (0..LENGTHS.len()).collect();
    order.sort_by_key(|&symbol| (LENGTHS[symbol], symbol));
    let mut tree = vec![[Child::None; 2]];
    let (mut code, mut length) = (0_u32, LENGTHS[order[0]]);
    for symbol in order {
        code <<= LENGTHS[symbol] - length;
        length = LENGTHS[symbol];
        let mut at = 0;
        for bit in (1..length).rev() {
            let bit = (code >> bit & 1) as usize;
            at = match tree[at][bit] {
                Child::Node(next) => next,
                _ => {
                    tree.push([Child::None; 2]);
                    let next = tree.len() - 1;
                    tree[at][bit] = Child::Node(next);
                    next
                }
            };
        }
        tree[at][(code & 1) as usize] = Child::Symbol(symbol);
        code += 1;
    }
    let step = |from: usize, bits: usize| {
        let (mut at, mut byte) = (from, None);
        for bit in [3, 2, 1, 0] {
            at = match tree[at][bits >> bit & 1] {
                Child::Node(next) => next,
                Child::Symbol(symbol) if symbol < 256 => {
                    byte = Some(symbol as u8);
                    0
                }
                Child::Symbol(_) | Child::None => return Step { node: 0, byte: None, broken: true },
            };
        }
        Step { node: at as u8, byte, broken: false }
    };
    let mut nodes: Vec<Node> = (0..tree.len())
        .map(|from| Node { steps: std::array::from_fn(|bits| step(from, bits)), ends: false })
        .collect();
    let mut at = 0;
    for _ in 0..8 {
        nodes[at].ends = true;
        match tree[at][1] {
            Child::Node(next) => at = next,
            _ => break,
        }
    }
    nodes
}

/// Appends what `coded` says; None: it is no such string.
pub fn decode(coded: &[u8], to: &mut BytesMut) -> Option<()> {
    let nodes = &*NODES;
    let mut node = &nodes[0];
    to.reserve(coded.len() * 2);
    for byte in coded {
        for bits in [byte >> 4, byte & 0x0f] {
            let step = &node.steps[usize::from(bits)];
            if step.broken {
                return None;
            }
            if let Some(byte) = step.byte {
                to.put_u8(byte);
            }
            node = &nodes[usize::from(step.node)];
        }
    }
    node.ends.then_some(())
}
