//! What privileged tests and the demo stand on: networks made of namespaces, and real programs running in them.
//!
//! [`lab`] builds a network, [`netns`] is one host of it, [`process`] is a program that runs there and ends with us,
//! and [`programs`] are the ones of this workspace. [`rig`] runs the XDP program alone, on frames that [`packet`] describes.

pub mod cpu;
pub mod lab;
pub mod netns;
pub mod packet;
pub mod process;
pub mod programs;
pub mod rig;
