//! The MarchProxy wire contract between modules and the NLB.
//!
//! The `.proto` files beside this crate are the documentation. `tests/contract.rs` freezes fields 1-99 of
//! every message.

mod generated {
    tonic::include_proto!("marchproxy");
}

pub use generated::*;

/// The compiled `.proto` files, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("marchproxy");

/// An enum of the contract whose values people name: in commands, filters and metadata.
pub trait Named: Copy + Sized {
    /// What the full name of each value begins with.
    const PREFIX: &'static str;

    fn from_full_name(name: &str) -> Option<Self>;

    fn full_name(self) -> &'static str;

    /// The value of this name, with or without the prefix, in any case. The unspecified value counts as one.
    fn by_name(name: &str) -> Option<Self> {
        Self::from_full_name(&format!("{}{}", Self::PREFIX, without_prefix(name, Self::PREFIX)))
    }

    /// The name without the prefix: `ALB`, not `MODULE_TYPE_ALB`.
    fn short_name(self) -> &'static str {
        let name = self.full_name();
        name.strip_prefix(Self::PREFIX).unwrap_or(name)
    }
}

/// The name in upper case and without this prefix, if it has it.
pub fn without_prefix(name: &str, prefix: &str) -> String {
    let name = name.to_ascii_uppercase();
    name.strip_prefix(prefix).map(str::to_owned).unwrap_or(name)
}

macro_rules! named {
    ($($name:ident: $prefix:literal),+) => {$(
        impl Named for $name {
            const PREFIX: &'static str = $prefix;

            fn from_full_name(name: &str) -> Option<Self> {
                Self::from_str_name(name)
            }

            fn full_name(self) -> &'static str {
                self.as_str_name()
            }
        }
    )+};
}

named!(ModuleType: "MODULE_TYPE_", HealthStatus: "HEALTH_STATUS_", Protocol: "PROTOCOL_");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_a_long_and_a_short_name_in_any_case() {
        for name in ["ALB", "alb", "MODULE_TYPE_ALB", "module_type_Alb"] {
            assert_eq!(ModuleType::by_name(name), Some(ModuleType::Alb), "{name}");
        }
        assert_eq!(HealthStatus::by_name("health_status_degraded"), Some(HealthStatus::Degraded));
        assert_eq!(Protocol::by_name("Protocol_Http2"), Some(Protocol::Http2));
        for name in ["", "CDN", "PROTOCOL_ALB", "MODULE_TYPE_MODULE_TYPE_ALB"] {
            assert_eq!(ModuleType::by_name(name), None, "{name}");
        }
        assert_eq!(ModuleType::Alb.short_name(), "ALB");
    }
}
