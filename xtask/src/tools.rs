//! Programs that cargo builds from source into target/tools: bpf-linker and cargo-deny.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::{bpf_toolchain, command, workspace};

/// Without optimisation, because building these programs takes longer than running them. bpf-linker spends
/// its time in LLVM, which is compiled already, and cargo-deny runs for a second.
const PROFILE: [(&str, &str); 4] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
];

pub struct Tool {
    pub name: &'static str,
    pub version: &'static str,
    /// The one that is needed in place of the default ones, if any.
    pub feature: Option<String>,
}

impl Tool {
    pub fn path(&self) -> PathBuf {
        bpf_toolchain::tools_dir(workspace::root()).join("bin").join(self.name)
    }

    /// Whether it is there, in this version and with this feature. Cargo keeps a record of both.
    pub fn is_current(&self) -> bool {
        let tools = bpf_toolchain::tools_dir(workspace::root());
        let record = fs::read_to_string(tools.join(".crates2.json")).unwrap_or_default();
        self.path().is_file() && self.is_recorded(&record)
    }

    fn is_recorded(&self, record: &str) -> bool {
        let feature = self.feature.as_ref().is_none_or(|feature| record.contains(&format!("\"{feature}\"")));
        feature && record.contains(&format!("\"{} {} ", self.name, self.version))
    }

    /// Builds it, with these variables.
    pub fn install(&self, variables: &[(&str, PathBuf)]) -> Result<()> {
        let mut cargo = workspace::cargo("install");
        cargo.args([self.name, "--version", self.version, "--locked", "--force"]);
        if let Some(feature) = &self.feature {
            cargo.args(["--no-default-features", "--features", feature]);
        }
        cargo
            .arg("--root")
            .arg(bpf_toolchain::tools_dir(workspace::root()))
            .envs(PROFILE)
            .envs(variables.iter().cloned())
            // The build directory is of no use to other builds.
            .env_remove("CARGO_TARGET_DIR");
        let with = self.feature.as_ref().map(|feature| format!(" with {feature}")).unwrap_or_default();
        let what = format!("building {} {}{with} (a minute or two)", self.name, self.version);
        command::run_quietly(&what, &mut cargo)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_or_feature_is_not_current() {
        let record = r#"{"installs":{"bpf-linker 0.13.0 (registry+x)":{"features":["llvm-22"]}}}"#;
        let tool =
            |version, feature: &str| Tool { name: "bpf-linker", version, feature: Some(feature.into()) };
        assert!(tool("0.13.0", "llvm-22").is_recorded(record));
        assert!(!tool("0.13.1", "llvm-22").is_recorded(record));
        assert!(!tool("0.13.0", "llvm-21").is_recorded(record));
        assert!(!Tool { name: "cargo-deny", version: "0.13.0", feature: None }.is_recorded(record));
    }
}
