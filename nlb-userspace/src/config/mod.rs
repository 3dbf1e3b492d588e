//! What an operator can set: by flag, by `NLB_` environment variable, over gRPC, or in a TOML file, in that
//! order.

pub(crate) mod atomic_file;
mod daemon;
#[cfg(test)]
mod documentation;
mod live;
mod options;
mod sources;
#[cfg(test)]
mod tests;
mod values;

pub use daemon::{Config, Flows};
pub use live::{Configuration, Proposal, Rejected};
pub use options::Options;
pub use sources::OuterSources;
pub use values::{AcceptMac, Mode, Net, Ports, Span, XdpMode};
