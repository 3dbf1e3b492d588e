//! What the kernel program and user space share: the layout of every map, and the packet logic.
//!
//! `no_std`, no allocation, no I/O. Everything here is compiled twice, for the BPF target and for the host, so that
//! the host's tests exercise the very code that the kernel runs. Two things follow for the style: functions on the
//! packet's way are `#[inline(always)]`, because a BPF call costs 9 ns and takes at most five arguments; and nothing
//! indexes a slice without `get`, because the verifier refuses what it cannot bound.

#![no_std]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics), allow(internal_features))]

pub mod abi;
pub mod atomic;
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
