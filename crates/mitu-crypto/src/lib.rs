//! What the cryptography costs on this machine: [`provider`] says which library and version does it, [`cpu`] which of
//! the CPU's instructions there are and what they are used for, and [`operation`] times it.

pub mod cpu;
pub mod operation;
pub mod provider;
mod timing;
