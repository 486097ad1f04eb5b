//! From a store URL to a configuration.

use commonhold_core::{Error, ErrorKind, Result, url::StoreUrl};

use crate::config::{Login, ReadFrom, RedisConfig, Servers};

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// The options that a store URL takes after `?`.
pub const OPTIONS: &[&str] = &[
    "user",
    "password",
    "database",
    "prefix",
    "ttl",
    "max_value",
    "min_connections",
    "max_connections",
    "connect_timeout",
    "read_timeout",
    "write_timeout",
    "pool_timeout",
    "pipeline",
    "abort_on_connect_fail",
    "read_from",
    "cluster",
    "service",
    "sentinel_user",
    "sentinel_password",
    "tls",
    "tls_ca",
    "tls_server_name",
];

impl RedisConfig {
    /// Reads `redis://[USER:PASSWORD@]HOST[:PORT][,HOST..][/DATABASE]`, `redis+sentinel://HOST,HOST/SERVICE` and
    /// `redis+cluster://HOST,HOST`, or the same with `rediss` for TLS, and the [`OPTIONS`].
    ///
    /// # Errors
    /// `InvalidConfig` that names the option and what it takes. Passwords are not in the message.
    ///
    /// ```
    /// use commonhold_core::url::StoreUrl;
    /// use commonhold_redis::RedisConfig;
    ///
    /// let url = StoreUrl::parse("rediss+sentinel://app:secret@s1,s2,s3/orders?prefix=app:&ttl=1h")?;
    /// RedisConfig::from_url(url)?.check()?;
    /// # Ok::<(), commonhold_core::Error>(())
    /// ```
    pub fn from_url(mut url: StoreUrl) -> Result<Self> {
        let (tls, arrangement) = match url.scheme() {
            "redis" => (false, ""),
            "rediss" => (true, ""),
            "redis+sentinel" => (false, "sentinel"),
            "rediss+sentinel" => (true, "sentinel"),
            "redis+cluster" => (false, "cluster"),
            "rediss+cluster" => (true, "cluster"),
            scheme => return invalid(format!("{scheme}: is no Redis URL")),
        };
        let port = if arrangement == "sentinel" { SENTINEL_PORT } else { PORT };
        let authority = url.authority(port)?;
        let cluster = switch(&mut url, "cluster")?.unwrap_or(arrangement == "cluster");
        let service = url.text("service");
        let hosts = authority.hosts.into_iter().map(|endpoint| (endpoint.host, endpoint.port));
        let mut config = match arrangement {
            "sentinel" => {
                let in_path = Some(authority.path.clone()).filter(|path| !path.is_empty());
                Self::sentinel(hosts, service.or(in_path).unwrap_or_default())
            }
            _ if service.is_some() => return invalid("the option service is for redis+sentinel://"),
            _ if cluster => Self::cluster(hosts),
            _ => Self::standalone(hosts),
        };
        if !matches!(config.servers, Servers::Sentinel { .. }) && !authority.path.is_empty() {
            config.database = match authority.path.parse() {
                Ok(number) => number,
                Err(_) => return invalid(format!("/{} is no number of a database", authority.path)),
            };
        }
        config.login = Login {
            user: url.text("user").or(authority.user),
            password: url.text("password").map(Into::into).or(authority.password),
        };
        config.sentinel_login = Login {
            user: url.text("sentinel_user"),
            password: url.text("sentinel_password").map(Into::into),
        };
        // The option adds to the scheme: it does not take encryption from a URL that asks for it.
        config = config.tls(switch(&mut url, "tls")?.unwrap_or_default() || tls);
        config.options(&mut url)?;
        url.finish()?;
        config.check()?;
        Ok(config)
    }

    fn options(&mut self, url: &mut StoreUrl) -> Result<()> {
        if let Some(file) = url.text("tls_ca") {
            self.tls.get_or_insert_default().ca = Some(file.into());
        }
        if let Some(name) = url.text("tls_server_name") {
            self.tls.get_or_insert_default().server_name = Some(name);
        }
        set(
            &mut self.database,
            url.parsed("database", "the number of a database", |text| text.parse().ok())?,
        );
        set(&mut self.prefix, url.text("prefix"));
        self.default_ttl = url.duration("ttl")?;
        set(&mut self.max_value_bytes, url.bytes("max_value")?);
        let number = |text: &str| text.parse().ok();
        set(&mut self.min_connections, url.parsed("min_connections", "a number", number)?);
        set(&mut self.max_connections, url.parsed("max_connections", "a number", number)?);
        set(&mut self.connect_timeout, url.duration("connect_timeout")?);
        set(&mut self.read_timeout, url.duration("read_timeout")?);
        set(&mut self.write_timeout, url.duration("write_timeout")?);
        set(&mut self.pool_timeout, url.duration("pool_timeout")?);
        set(&mut self.pipeline_batch_size, url.parsed("pipeline", "a number of keys, 1 to 5000", number)?);
        set(&mut self.abort_on_connect_fail, switch(url, "abort_on_connect_fail")?);
        let read_from = url.parsed("read_from", "primary or replica", |text| match text {
            "primary" => Some(ReadFrom::Primary),
            "replica" => Some(ReadFrom::Replica),
            _ => None,
        })?;
        set(&mut self.read_from, read_from);
        Ok(())
    }
}

fn set<T>(option: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *option = given;
    }
}

fn switch(url: &mut StoreUrl, name: &'static str) -> Result<Option<bool>> {
    url.parsed(name, "true or false", |text| text.parse().ok())
}

fn invalid<T>(message: impl Into<std::borrow::Cow<'static, str>>) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidConfig, message))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use secrecy::ExposeSecret as _;

    use super::*;

    fn parse(url: &str) -> Result<RedisConfig> {
        RedisConfig::from_url(StoreUrl::parse(url)?)
    }

    #[test]
    fn the_options_that_are_listed_are_those_that_are_taken() {
        let error = parse("redis://h?Q=1").unwrap_err().to_string();
        for option in OPTIONS {
            assert!(error.contains(option), "{option}: {error}");
        }
        assert_eq!(error.split(", ").count(), OPTIONS.len(), "{error}");
    }

    #[test]
    fn each_scheme_names_an_arrangement() {
        let hosts = |config: &RedisConfig| match &config.servers {
            Servers::Standalone(hosts) => ("standalone", hosts.len()),
            Servers::Sentinel { sentinels, .. } => ("sentinel", sentinels.len()),
            Servers::Cluster(members) => ("cluster", members.len()),
        };
        for (url, expected, tls) in [
            ("redis://a,b", ("standalone", 2), false),
            ("rediss://a", ("standalone", 1), true),
            ("rediss://a?tls=false", ("standalone", 1), true),
            ("redis://a?tls=true", ("standalone", 1), true),
            ("redis+sentinel://a,b,c/main", ("sentinel", 3), false),
            ("rediss+sentinel://a?service=main", ("sentinel", 1), true),
            ("redis+cluster://a,b", ("cluster", 2), false),
            ("redis://a,b?cluster=true", ("cluster", 2), false),
            ("rediss+cluster://a", ("cluster", 1), true),
        ] {
            let config = parse(url).unwrap();
            assert_eq!((hosts(&config), config.tls.is_some()), (expected, tls), "{url}");
        }
    }

    #[test]
    fn every_option_reaches_the_configuration() {
        let config = parse(
            "redis://h/1?user=u&password=hunter2&database=2&prefix=app:&ttl=1h&max_value=1MiB&min_connections=10\
             &max_connections=50&connect_timeout=1s&read_timeout=2s&write_timeout=4s&pool_timeout=5s&pipeline=100\
             &abort_on_connect_fail=true&read_from=replica&tls_ca=/ca.pem&tls_server_name=r",
        )
        .unwrap();
        assert_eq!(config.login.user.as_deref(), Some("u"));
        assert_eq!(config.login.password.as_ref().unwrap().expose_secret(), "hunter2");
        assert_eq!((config.database, &*config.prefix, config.pipeline_batch_size), (2, "app:", 100));
        assert_eq!((config.min_connections, config.max_connections), (10, 50));
        assert_eq!(config.default_ttl, Some(Duration::from_secs(3600)));
        assert_eq!(config.write_timeout, Duration::from_secs(4));
        assert!(config.abort_on_connect_fail && config.tls.as_ref().unwrap().server_name.is_some());
        assert_eq!(config.read_from, ReadFrom::Replica);
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn what_is_wrong_is_refused_by_name_without_the_password() {
        for (url, name) in [
            ("redis://u:hunter2@", "server"),
            ("redis://u:hunter2@h/x", "database"),
            ("redis://u:hunter2@h?pipeline=0", "pipeline"),
            ("redis://u:hunter2@h?pipeline=x", "pipeline"),
            ("redis://u:hunter2@h?min_connections=9&max_connections=8", "connections"),
            ("redis://u:hunter2@h?max_value=1GiB", "value"),
            ("redis://u:hunter2@h?read_timeout=2h", "read_timeout"),
            ("redis://u:hunter2@h?service=x", "service"),
            ("redis+sentinel://u:hunter2@h", "service"),
            ("redis+cluster://u:hunter2@h/1", "Cluster"),
            ("redis://u:hunter2@h?prefx=x", "prefix"),
        ] {
            let error = parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}");
            let text = error.to_string();
            assert!(text.contains(name) && !text.contains("hunter2"), "{url}: {text}");
        }
    }
}
