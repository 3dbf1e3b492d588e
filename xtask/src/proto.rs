//! `cargo xtask proto`: checks the gRPC contract, and generates clients in other languages.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use clap::{Subcommand, ValueEnum};

use crate::needs::Verb;
use crate::{command, setup, workspace};

#[derive(Subcommand)]
pub enum Task {
    /// Check the .proto files: their form, their documentation, and that they break no existing client.
    /// BLESS=1 writes additions to the baseline
    Check,
    /// Generate clients and servers in another language
    Gen {
        #[arg(long, value_name = "LANGUAGE")]
        lang: Language,
        /// The output directory [target/proto/LANGUAGE]
        #[arg(long, value_name = "DIRECTORY")]
        out: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Language {
    Python,
    Go,
}

pub fn run(task: &Task) -> Result<()> {
    match task {
        Task::Check => command::run(workspace::cargo("test").args(["--package", "nlb-proto"])),
        Task::Gen { lang, out } => generate(*lang, out.clone()),
    }
}

fn generate(language: Language, out: Option<PathBuf>) -> Result<()> {
    let (name, verb) = match language {
        Language::Python => ("python", Verb::Python),
        Language::Go => ("go", Verb::Go),
    };
    setup::install_for(verb)?;
    let out = out.unwrap_or_else(|| workspace::root().join("target/proto").join(name));
    let out = std::path::absolute(out)?;
    command::run(Command::new(workspace::root().join("proto/generate.sh")).arg(name).arg(&out))?;
    println!("{}", out.display());
    Ok(())
}
