//! The load of a group.

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    pub instances: u32,
    /// The mean over the instances that report it.
    pub cpu_percent: Option<f64>,
    pub memory_percent: Option<f64>,
    /// Active flows of all instances together.
    pub connections: u64,
}
