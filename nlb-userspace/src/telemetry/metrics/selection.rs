//! Which metrics a reader selects: names, or prefixes of names.

/// The most similar names that an error lists.
const SIMILAR: usize = 3;

/// An empty selection means all metrics.
#[derive(Clone, Debug, Default)]
pub struct Selection(Vec<Pattern>);

#[derive(Clone, Debug)]
enum Pattern {
    Name(String),
    /// Written with a trailing `*`.
    Prefix(String),
}

/// The prefix of the NLB's own metrics. Modules may use any other name: a name that no module reports now is
/// no error.
pub const OWN: &str = "nlb_";

/// A name with the prefix [`OWN`] that no metric has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownName {
    /// Its index among the requested names.
    pub index: usize,
    /// Names with a similar spelling.
    pub similar: Vec<String>,
}

impl Selection {
    pub fn parse<'a>(
        asked: &[String],
        known: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<Self, UnknownName> {
        let parse = |(index, text): (usize, &String)| {
            let pattern = match text.strip_suffix('*') {
                Some(prefix) => Pattern::Prefix(prefix.to_owned()),
                None => Pattern::Name(text.clone()),
            };
            let foreign = !text.is_empty() && !text.starts_with(OWN);
            if foreign || known.clone().any(|name| pattern.fits(name)) {
                return Ok(pattern);
            }
            Err(UnknownName { index, similar: similar(text.trim_end_matches('*'), known.clone()) })
        };
        asked.iter().enumerate().map(parse).collect::<Result<_, _>>().map(Selection)
    }

    pub fn takes(&self, name: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|pattern| pattern.fits(name))
    }
}

impl Pattern {
    fn fits(&self, name: &str) -> bool {
        match self {
            Pattern::Name(wanted) => wanted == name,
            Pattern::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }
}

fn similar<'a>(text: &str, known: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut known: Vec<&str> = known.collect();
    known.sort_unstable();
    known.dedup();
    let likeness = |name: &&str| strsim::normalized_damerau_levenshtein(text, name);
    known.sort_by(|a, b| likeness(b).total_cmp(&likeness(a)));
    known.into_iter().take(SIMILAR).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 4] = ["nlb_modules", "nlb_packets_total", "nlb_packets_seen_total", "nlb_queue"];

    fn parse(asked: &[&str]) -> Result<Selection, UnknownName> {
        let asked: Vec<String> = asked.iter().map(|name| name.to_string()).collect();
        Selection::parse(&asked, KNOWN.iter().copied())
    }

    fn taken(asked: &[&str]) -> Vec<&'static str> {
        let selection = parse(asked).unwrap();
        KNOWN.into_iter().filter(|name| selection.takes(name)).collect()
    }

    #[test]
    fn takes_names_and_prefixes() {
        assert_eq!(taken(&[]), KNOWN);
        assert_eq!(taken(&["*"]), KNOWN);
        assert_eq!(taken(&["nlb_queue", "nlb_packets_*"]), &KNOWN[1..]);
        assert_eq!(taken(&["nlb_packets_total"]), ["nlb_packets_total"]);
    }

    #[test]
    fn an_unknown_name_is_refused_with_similar_ones() {
        let unknown = parse(&["nlb_queue", "nlb_paket_total"]).unwrap_err();
        assert_eq!((unknown.index, unknown.similar[0].as_str()), (1, "nlb_packets_total"));
        assert_eq!(unknown.similar.len(), SIMILAR);
        assert_eq!(parse(&["nlb_modul_*"]).unwrap_err().similar[0], "nlb_modules");
        assert!(parse(&["nlb_packet"]).is_err(), "a prefix has a star");
        assert!(parse(&[""]).is_err());
    }

    #[test]
    fn names_that_only_modules_report_are_not_refused() {
        assert!(taken(&["requests_total", "queue*"]).is_empty());
        assert!(parse(&["requests_total"]).unwrap().takes("requests_total"));
    }
}
