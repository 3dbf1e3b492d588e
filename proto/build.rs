//! Compiles the contract in pure Rust, so that building needs no protoc. Server reflection uses the
//! descriptor set.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 4] = [
    "marchproxy/types.proto",
    "marchproxy/module.proto",
    "marchproxy/nlb.proto",
    "marchproxy/operator.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("marchproxy.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
