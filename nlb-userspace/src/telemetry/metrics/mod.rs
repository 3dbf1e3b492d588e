//! Metrics of the NLB: a catalogue, a sample of it every second, and the samples of the last hour.
//!
//! `catalogue` lists every metric; `sample` holds their values; `recorder` takes a sample once a second and
//! adds it to `history`; `activity` records when backends were last used. Readers share what the recorder
//! made, so nothing is counted twice. What modules report of themselves is stored in `reported`.

mod activity;
pub mod catalogue;
mod chunk;
pub(crate) mod history;
mod recorder;
pub(crate) mod reported;
pub(crate) mod sample;
mod selection;
mod totals;
mod view;

pub use activity::Activity;
pub use history::{HOUR, History};
pub use recorder::{Recorder, Sources};
pub use reported::Reported;
pub use sample::{Sample, Subject};
pub use selection::{OWN, Selection, UnknownName};
pub use view::{Metrics, View};
