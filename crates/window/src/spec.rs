//! What a job does: which fields are read, how time is cut, and what is aggregated.

use std::{fmt, path::Path, time::Duration};

use commonhold_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::{
    aggregate::{Aggregates, Plan},
    assign::{Span, Windows},
    time::TimeUnit,
};

/// What a job does to its events. It is kept with the job, whose stored windows mean nothing without it.
///
/// ```
/// use std::time::Duration;
/// use commonhold_window::{Aggregates, Format, JobSpec, Windows};
///
/// let mut spec = JobSpec::new(Format::Csv, "TIMESTAMP", Windows::tumbling(Duration::from_secs(60))?);
/// spec.aggregates.sum = vec!["ContextTokens".into(), "GeneratedTokens".into()];
/// # Ok::<(), commonhold_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// How events are written down.
    pub format: Format,
    /// The field that says when an event happened.
    pub time: String,
    /// The unit of times that are numbers; `None` for times that are text. See [`parse_time`](crate::parse_time).
    pub time_unit: Option<TimeUnit>,
    /// The fields whose values keep windows apart; with none, a window holds all events of its time.
    pub keys: Vec<String>,
    /// How time is cut into windows.
    pub windows: Windows,
    /// How far the [watermark](crate::Watermark) stays behind the latest event; `None` for not at all.
    pub lateness: Option<Span>,
    /// What is kept of the events of a window, beside their count.
    pub aggregates: Aggregates,
}

impl JobSpec {
    /// The most fields of one kind of aggregate, or of the key.
    pub const MAX_FIELDS: usize = 64;

    /// Counts events by their time.
    pub fn new(format: Format, time: impl Into<String>, windows: Windows) -> Self {
        Self {
            format,
            time: time.into(),
            time_unit: None,
            keys: Vec::new(),
            windows,
            lateness: None,
            aggregates: Aggregates::default(),
        }
    }

    /// Lets events come late by this much; zero for not at all.
    ///
    /// # Errors
    /// `InvalidConfig` for more than [`Span::MAX`].
    pub fn with_lateness(mut self, lateness: Duration) -> Result<Self> {
        self.lateness = if lateness.is_zero() { None } else { Some(Span::new(lateness)?) };
        Ok(self)
    }

    /// The steps that fold an event.
    pub fn plan(&self) -> Plan {
        Plan::new(&self.aggregates)
    }

    pub(crate) fn lateness_nanos(&self) -> i64 {
        self.lateness.map_or(0, Span::nanos)
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// `InvalidConfig` for a field that is named twice in one place, or too many of them.
    pub fn check(&self) -> Result<()> {
        let Aggregates { sum, min, max, mean, quantiles, distinct } = &self.aggregates;
        for (place, fields) in [
            ("key", &self.keys),
            ("sum", sum),
            ("min", min),
            ("max", max),
            ("mean", mean),
            ("quantiles", quantiles),
            ("distinct", distinct),
        ] {
            let problem = if fields.len() > Self::MAX_FIELDS {
                format!("{place} takes at most {} fields, not {}", Self::MAX_FIELDS, fields.len())
            } else if let Some(twice) = twice(fields) {
                format!("{place} names the field \"{twice}\" twice")
            } else {
                continue;
            };
            return Err(Error::new(ErrorKind::InvalidConfig, problem));
        }
        Ok(())
    }

    /// How another spec differs from this one: `windows was {..}, is {..}`; `None` if it does not.
    pub(crate) fn difference(&self, now: &Self) -> Option<String> {
        let (Ok(serde_json::Value::Object(was)), Ok(serde_json::Value::Object(now))) =
            (serde_json::to_value(self), serde_json::to_value(now))
        else {
            return None;
        };
        let mut differences = Vec::new();
        for (name, now) in &now {
            match (was.get(name), now) {
                (Some(was), now) if was == now => {}
                // One level deeper, so that the one aggregate that differs is named.
                (Some(serde_json::Value::Object(was)), serde_json::Value::Object(now))
                    if name == "aggregates" =>
                {
                    for (name, now) in now.iter().filter(|(name, now)| was.get(*name) != Some(*now)) {
                        let was = was.get(name).unwrap_or(&serde_json::Value::Null);
                        differences.push(format!("{name} was {was}, is {now}"));
                    }
                }
                (was, now) => {
                    let was = was.unwrap_or(&serde_json::Value::Null);
                    differences.push(format!("{name} was {was}, is {now}"));
                }
            }
        }
        (!differences.is_empty()).then(|| differences.join("; "))
    }
}

fn twice(fields: &[String]) -> Option<&String> {
    fields
        .iter()
        .enumerate()
        .find(|(n, field)| fields.iter().take(*n).any(|known| known == *field))
        .map(|(_, f)| f)
}

/// How events are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Comma-separated values with a header, RFC 4180.
    Csv,
    /// One JSON object a line.
    Jsonl,
}

impl Format {
    /// The format that a file's extension stands for: `csv`; `jsonl`, `ndjson`, `json`.
    pub fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "csv" => Some(Self::Csv),
            "jsonl" | "ndjson" | "json" => Some(Self::Jsonl),
            _ => None,
        }
    }
}

/// The name under which a job's windows and position are kept: 1 to [`JobName::MAX_LEN`] bytes without control
/// characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct JobName(String);

impl JobName {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 64;

    /// Checks a name.
    ///
    /// # Errors
    /// `InvalidConfig` if it is empty, too long, or has control characters.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let problem = match name.len() {
            0 => "a job's name must not be empty".to_owned(),
            len if len > Self::MAX_LEN => {
                format!("a job's name has at most {} bytes, not {len}", Self::MAX_LEN)
            }
            _ if name.contains(char::is_control) => {
                format!("a job's name has no control characters: \"{}\"", name.escape_debug())
            }
            _ => return Ok(Self(name)),
        };
        Err(Error::new(ErrorKind::InvalidConfig, problem))
    }

    /// The name for a job that reads this file: its name without the extension, as far as it is fit.
    pub fn of(path: &Path) -> Self {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let mut name = stem.replace(char::is_control, "_");
        name.truncate(name.floor_char_boundary(Self::MAX_LEN));
        if name.is_empty() { Self::stdin() } else { Self(name) }
    }

    /// The name for a job that reads standard input: `stdin`.
    pub fn stdin() -> Self {
        Self("stdin".to_owned())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> JobSpec {
        JobSpec::new(Format::Csv, "at", Windows::tumbling(Duration::from_secs(60)).unwrap())
    }

    #[test]
    fn a_spec_survives_being_stored() {
        let mut spec = spec().with_lateness(Duration::from_millis(1500)).unwrap();
        spec.time_unit = Some(TimeUnit::Ms);
        spec.keys = vec!["a".to_owned()];
        let text = serde_json::to_string(&spec).unwrap();
        assert!(text.contains(r#""windows":{"tumbling":{"size":"1m"}},"lateness":"1s 500ms""#), "{text}");
        assert_eq!(serde_json::from_str::<JobSpec>(&text).unwrap(), spec);
    }

    #[test]
    fn a_difference_is_named() {
        let was = spec();
        let mut now = spec();
        now.windows = Windows::tumbling(Duration::from_secs(300)).unwrap();
        now.aggregates.sum = vec!["x".to_owned()];
        assert_eq!(was.difference(&was), None);
        assert_eq!(
            was.difference(&now).unwrap(),
            r#"sum was [], is ["x"]; windows was {"tumbling":{"size":"1m"}}, is {"tumbling":{"size":"5m"}}"#
        );
    }

    #[test]
    fn a_field_named_twice_is_refused() {
        let mut spec = spec();
        spec.keys = vec!["a".to_owned(), "b".to_owned(), "a".to_owned()];
        assert!(spec.check().unwrap_err().message().contains("\"a\" twice"));
    }

    #[test]
    fn a_job_is_named_after_its_file() {
        assert_eq!(JobName::of(Path::new("/data/trace.csv")).as_str(), "trace");
        assert_eq!(JobName::of(Path::new("a\nb.csv")).as_str(), "a_b");
        assert_eq!(JobName::of(Path::new(&"ä".repeat(100))).as_str(), "ä".repeat(32));
        for name in ["", "a\0", &"x".repeat(65)] {
            assert!(JobName::new(name).is_err());
        }
    }

    #[test]
    fn the_extension_says_the_format() {
        assert_eq!(Format::of(Path::new("a.CSV")), Some(Format::Csv));
        assert_eq!(Format::of(Path::new("a.ndjson")), Some(Format::Jsonl));
        assert_eq!(Format::of(Path::new("a.txt")), None);
    }
}
