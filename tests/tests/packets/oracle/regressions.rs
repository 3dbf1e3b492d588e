//! Sequences that once came out wrong, as they were printed.

use anyhow::{Result, bail};

use super::run::Oracle;
use super::step::parse;

const SEQUENCES: &[(&str, &str)] = &[];

#[test]
fn what_once_went_wrong_goes_right() -> Result<()> {
    let mut oracle = Oracle::new()?;
    for (what, text) in SEQUENCES {
        if let Some(difference) = oracle.replay(&parse(text)?)? {
            bail!("{what}: {difference}");
        }
    }
    Ok(())
}
