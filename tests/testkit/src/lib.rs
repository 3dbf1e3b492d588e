//! What the privileged tests, the benchmarks and the demo share: networks of namespaces with real programs.
//!
//! [`lab`] builds a network, [`netns`] is one of its hosts, [`process`] a program on a host, and [`programs`]
//! starts the programs of this workspace. With the feature `rig`, `rig` runs the XDP program on single
//! frames, which `packet` builds.

pub mod cpu;
pub mod lab;
pub mod netns;
#[cfg(feature = "rig")]
pub mod packet;
pub mod process;
pub mod programs;
#[cfg(feature = "rig")]
pub mod rig;
