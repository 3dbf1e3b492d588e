//! What a group carries.

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    pub instances: u32,
    /// Means of those who tell.
    pub cpu_percent: Option<f64>,
    pub memory_percent: Option<f64>,
    /// Active flows of all instances together.
    pub connections: u64,
}
