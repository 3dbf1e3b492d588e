//! What the NLB measures of itself: a catalogue, a sample of it every second, and the last hour of samples.
//!
//! `catalogue` names every metric; `sample` reads their values; `recorder` does so once a second and adds the sample to
//! `history`; `activity` tells when backends were last used. Readers share what the recorder made: nobody counts twice. What modules say of themselves is kept in
//! `reported`.

mod activity;
pub mod catalogue;
mod chunk;
pub mod history;
mod recorder;
pub mod reported;
pub mod sample;
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
