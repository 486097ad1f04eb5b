//! Store URLs: a scheme, an address, and options that are read one by one and never silently ignored.

use std::{fmt, time::Duration};

use crate::error::{Error, ErrorKind, Result};

/// A store URL taken apart: `disk:./data?durability=buffered`.
///
/// Whoever opens the store takes the options it knows and calls [`finish`](Self::finish), which refuses the
/// rest. `Debug` shows the names of the options but neither their values nor the address, which may hold
/// credentials.
///
/// ```
/// use std::time::Duration;
/// use commonhold_core::url::StoreUrl;
///
/// let mut url = StoreUrl::parse("disk:./my%20data?ttl=1h&max_value=1MiB")?;
/// assert_eq!((url.scheme(), url.address()), ("disk", "./my%20data"));
/// assert_eq!(url.duration("ttl")?, Some(Duration::from_secs(3600)));
/// assert_eq!(url.bytes("max_value")?, Some(1_048_576));
/// url.finish()?;
///
/// let url = StoreUrl::parse("memory:?tll=1h")?;
/// assert!(url.finish().unwrap_err().to_string().contains("tll"));
/// # Ok::<(), commonhold_core::Error>(())
/// ```
pub struct StoreUrl {
    scheme: String,
    address: String,
    options: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl StoreUrl {
    /// Takes a URL apart at the first `:` and the first `?` behind it.
    ///
    /// # Errors
    /// `InvalidConfig` if there is no scheme or an option is given twice.
    pub fn parse(text: &str) -> Result<Self> {
        let (scheme, rest) = text
            .split_once(':')
            .filter(|(scheme, _)| {
                !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
            })
            .ok_or_else(|| invalid("a store URL begins with its scheme, as in memory: or disk:./data"))?;
        let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut options: Vec<(String, String)> = Vec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if options.iter().any(|(other, _)| *other == name) {
                return Err(invalid(format!("the option {name:?} is given twice in the store URL")));
            }
            options.push((name.into_owned(), value.into_owned()));
        }
        Ok(Self {
            scheme: scheme.to_ascii_lowercase(),
            address: address.to_owned(),
            options,
            known: Vec::new(),
        })
    }

    /// What stands before the `:`, in lower case.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// What stands between the scheme and the options, as it is.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Takes an option as text.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        let index = self.options.iter().position(|(other, _)| other == name)?;
        Some(self.options.swap_remove(index).1)
    }

    /// Takes an option and parses it. `takes` says what it takes, for the error.
    ///
    /// # Errors
    /// `InvalidConfig` if `parse` returns nothing.
    pub fn parsed<T>(
        &mut self,
        name: &'static str,
        takes: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(text) = self.text(name) else { return Ok(None) };
        parse(&text)
            .map(Some)
            .ok_or_else(|| invalid(format!("the option {name}={text:?} of the store URL is not {takes}")))
    }

    /// Takes an option as a duration of more than zero: `250ms`, `10s`, `1h30m`.
    ///
    /// # Errors
    /// `InvalidConfig` if it is none.
    pub fn duration(&mut self, name: &'static str) -> Result<Option<Duration>> {
        self.parsed(name, "a duration of more than zero, as in 250ms, 10s or 1h30m", parse_duration)
    }

    /// Takes an option as a number of bytes of more than zero: `4096`, `64MiB`, `1GB`.
    ///
    /// # Errors
    /// `InvalidConfig` if it is none.
    pub fn bytes(&mut self, name: &'static str) -> Result<Option<u64>> {
        let parse =
            |text: &str| Some(text.parse::<bytesize::ByteSize>().ok()?.as_u64()).filter(|&bytes| bytes > 0);
        self.parsed(name, "a number of bytes of more than zero, as in 4096, 64MiB or 1GB", parse)
    }

    /// Refuses the options that nobody took.
    ///
    /// # Errors
    /// `InvalidConfig` naming the first of them and what it might have meant.
    pub fn finish(self) -> Result<()> {
        let Some((name, _)) = self.options.first() else { return Ok(()) };
        Err(invalid(format!("{}: has no option {name:?}; {}", self.scheme, did_you_mean(name, &self.known))))
    }
}

/// A duration of more than zero, as people write it: `250ms`, `10s`, `1h30m`, `2 days`. A day has 24 hours.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let span = text.parse::<jiff::Span>().ok()?;
    let duration = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).ok()?;
    Duration::try_from(duration).ok().filter(|duration| !duration.is_zero())
}

/// What to say of a name that does not exist: the one it is most like, or all that there are.
pub fn did_you_mean(name: &str, known: &[&str]) -> String {
    let best = known
        .iter()
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .filter(|(likeness, _)| *likeness > 0.8);
    match best {
        Some((_, best)) => format!("did you mean {best:?}?"),
        None if known.is_empty() => "there are none".to_owned(),
        None => format!("there are: {}", known.join(", ")),
    }
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidConfig, message)
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options: Vec<_> = self.options.iter().map(|(name, _)| name).collect();
        f.debug_struct("StoreUrl")
            .field("scheme", &self.scheme)
            .field("options", &options)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_a_scheme_is_refused() {
        for text in ["", "data", ":data", "./a:b", "a b:c"] {
            assert_eq!(StoreUrl::parse(text).unwrap_err().kind(), ErrorKind::InvalidConfig, "{text:?}");
        }
    }

    #[test]
    fn a_wrong_option_is_named_with_what_it_takes() {
        let error = StoreUrl::parse("memory:?ttl=soon").unwrap().duration("ttl").unwrap_err().to_string();
        assert!(error.contains("ttl") && error.contains("soon") && error.contains("10s"), "{error}");
        assert!(StoreUrl::parse("memory:?ttl=0s").unwrap().duration("ttl").is_err());
        assert!(StoreUrl::parse("memory:?ttl=-5s").unwrap().duration("ttl").is_err());
        assert!(StoreUrl::parse("memory:?max=1.5XB").unwrap().bytes("max").is_err());
        assert!(StoreUrl::parse("memory:?a=1&a=2").is_err());
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        let hours = |hours: u64| Some(Duration::from_secs(hours * 3600));
        for (text, duration) in
            [("2 days", hours(48)), ("1d", hours(24)), ("1w", hours(168)), ("1h", hours(1))]
        {
            assert_eq!(parse_duration(text), duration, "{text}");
        }
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        for text in ["", "5", "1 month", "-1d", "0d", "99999999999999999999h"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn debug_shows_neither_the_address_nor_values() {
        let url = StoreUrl::parse("redis://user:hunter2@host?password=hunter2").unwrap();
        assert!(!format!("{url:?}").contains("hunter2"));
    }
}
