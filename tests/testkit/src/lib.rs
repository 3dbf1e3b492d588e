//! What the privileged tests, the benchmarks and the demo share: networks of namespaces, and real programs in
//! them.
//!
//! [`lab`] builds a network, [`netns`] is one of its hosts, [`process`] is a program that runs there, and
//! [`programs`] starts those of this workspace. With the feature `rig`, `rig` runs the XDP program on single
//! frames, which `packet` describes.

pub mod cpu;
pub mod lab;
pub mod netns;
#[cfg(feature = "rig")]
pub mod packet;
pub mod process;
pub mod programs;
#[cfg(feature = "rig")]
pub mod rig;
