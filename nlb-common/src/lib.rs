//! What the kernel programs and user space share: the layout of every map, and the packet logic.
//!
//! `no_std`, no allocation, no I/O. Everything here is compiled for the BPF target and for the host, so that
//! tests on the host exercise the code that the kernel runs. Functions on the packet path are
//! `#[inline(always)]`, because a BPF call costs 9 ns and takes at most five arguments. No code indexes a
//! slice without `get`, because the verifier refuses an index without a bound.

#![no_std]
// What no other crate can name is `pub(crate)`, so that the compiler reports it once nothing uses it.
#![warn(unreachable_pub)]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics), allow(internal_features))]

pub mod abi;
pub mod atomic;
pub mod capacity;
pub mod checksum;
pub mod flow;
pub mod fragment;
pub mod frame;
pub mod gue;
pub mod hash;
pub mod icmp;
pub mod limit;
pub mod maglev;
pub mod net;
pub mod parse;
pub mod prefix;
pub mod protocol;
pub mod quic;
pub mod refusal;
pub mod rewrite;
pub mod sources;
pub mod upcall;
pub mod verdict;
