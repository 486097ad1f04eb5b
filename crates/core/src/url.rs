//! Store URLs: a scheme, an address, and options that are read one by one and never silently ignored.

use std::{fmt, time::Duration};

use secrecy::SecretString;

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
    /// Takes a URL apart at the first `:` and the first `?` behind it. Values of options are percent-decoded.
    ///
    /// # Errors
    /// `InvalidConfig` if there is no scheme, or an option is given twice, has no proper name or a value that is not UTF-8.
    pub fn parse(text: &str) -> Result<Self> {
        let (scheme, rest) = text
            .split_once(':')
            .filter(|(scheme, _)| {
                !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
            })
            .ok_or_else(|| invalid("a store URL begins with its scheme, as in memory: or disk:./data"))?;
        let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut options: Vec<(String, String)> = Vec::new();
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            // What is no name may be the rest of a password.
            if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b)) {
                return Err(invalid(
                    "the options of the store URL have the form NAME=VALUE; in user, password and values, write ?, \
                     &, = and @ as %3F, %26, %3D and %40",
                ));
            }
            if options.iter().any(|(other, _)| other == name) {
                return Err(invalid(format!("the option {name:?} is given twice in the store URL")));
            }
            let value = percent_encoding::percent_decode_str(value).decode_utf8();
            let value =
                value.map_err(|_| invalid(format!("the option {name} of the store URL is not UTF-8")))?;
            options.push((name.to_owned(), value.into_owned()));
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

    /// Takes the address apart as `//[USER[:PASSWORD]@]HOST[:PORT][,HOST[:PORT]..][/PATH]`. User, password and
    /// path are percent-decoded; an IPv6 host stands in brackets.
    ///
    /// # Errors
    /// `InvalidConfig` if it is not of this form. The password is not in the message.
    pub fn authority(&self, default_port: u16) -> Result<Authority> {
        let address = self.address.strip_prefix("//").ok_or_else(|| {
            invalid(format!("a {0} URL begins with {0}://, as in {0}://localhost", self.scheme))
        })?;
        let (authority, path) = address.split_once('/').unwrap_or((address, ""));
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (Some(login), hosts),
            None => (None, authority),
        };
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
            None => (None, None),
            Some((user, password)) => {
                let given = |text: String| (!text.is_empty()).then_some(text);
                (given(self.decoded("user", user)?), given(self.decoded("password", password)?))
            }
        };
        let hosts = hosts
            .split(',')
            .filter(|host| !host.is_empty())
            .map(|host| self.endpoint(host, default_port))
            .collect::<Result<_>>()?;
        Ok(Authority { user, password: password.map(Into::into), hosts, path: self.decoded("path", path)? })
    }

    fn decoded(&self, what: &str, text: &str) -> Result<String> {
        let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
        decoded
            .map(std::borrow::Cow::into_owned)
            .map_err(|_| invalid(format!("the {what} of the {} URL is not UTF-8", self.scheme)))
    }

    fn endpoint(&self, text: &str, default_port: u16) -> Result<Endpoint> {
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let port = port.map_or(Some(default_port), |port| port.parse().ok().filter(|&port| port != 0));
        match port {
            Some(port) if !host.is_empty() && !host.contains(['[', ']', ' ']) => {
                Ok(Endpoint { host: host.to_owned(), port })
            }
            // It is not shown: it may be a part of the password.
            _ => Err(invalid(format!(
                "the {0} URL does not name its servers as HOST:PORT; in user and password, write /, ?, # and @ as \
                 %2F, %3F, %23 and %40",
                self.scheme
            ))),
        }
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

/// Whom to ask, and as whom: the address of a store on a network. `Debug` does not show the password.
#[derive(Debug, Clone)]
pub struct Authority {
    /// The user, if one is named.
    pub user: Option<String>,
    /// The password, if one is given.
    pub password: Option<SecretString>,
    /// The servers, in the order in which they are named; perhaps none.
    pub hosts: Vec<Endpoint>,
    /// What follows the first `/`, without it.
    pub path: String,
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// A name or an address; IPv6 without brackets.
    pub host: String,
    /// 1 to 65535.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
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
    fn values_are_percent_decoded_and_nothing_else() {
        let mut url = StoreUrl::parse("redis://h?prefix=a%20b+c%26&empty=&flag").unwrap();
        assert_eq!(url.text("prefix").unwrap(), "a b+c&");
        assert_eq!((url.text("empty").unwrap(), url.text("flag").unwrap()), (String::new(), String::new()));
        for wrong in ["memory:?prefix=%ff", "memory:?%ff=1", "memory:?a b=1"] {
            assert_eq!(StoreUrl::parse(wrong).unwrap_err().kind(), ErrorKind::InvalidConfig, "{wrong}");
        }
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
    fn an_authority_is_taken_apart() {
        use secrecy::ExposeSecret as _;

        let url = StoreUrl::parse("redis+sentinel://us%40er:p%3A%2Fw@a,b:1,[::1]:2/my%20master?x=1").unwrap();
        let authority = url.authority(26379).unwrap();
        assert_eq!(authority.user.as_deref(), Some("us@er"));
        assert_eq!(authority.password.as_ref().unwrap().expose_secret(), "p:/w");
        let hosts: Vec<_> = authority.hosts.iter().map(ToString::to_string).collect();
        assert_eq!(hosts, ["a:26379", "b:1", "[::1]:2"]);
        assert_eq!(authority.path, "my master");
        assert!(!format!("{authority:?}").contains("p:/w"));
        let without = StoreUrl::parse("redis://:secret@h").unwrap().authority(1).unwrap();
        assert!(without.user.is_none() && without.password.is_some() && without.path.is_empty());
    }

    #[test]
    fn a_wrong_authority_is_refused_without_showing_the_password() {
        for address in [
            "redis:h",
            "redis://u:hunter2@h:0",
            "redis://u:hunter2@h:x",
            "redis://u:hunter2@:1",
            "redis://[::1",
            "redis://u:hunter2/x@h",
            "redis://u:hunter2?x@h",
            "redis://hunter2:hunter2:1@h:",
        ] {
            let error = StoreUrl::parse(address).and_then(|url| url.authority(1)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{address}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        assert!(StoreUrl::parse("redis://%ff@h").unwrap().authority(1).is_err());
    }

    #[test]
    fn debug_shows_neither_the_address_nor_values() {
        let url = StoreUrl::parse("redis://user:hunter2@host?password=hunter2").unwrap();
        assert!(!format!("{url:?}").contains("hunter2"));
    }
}
