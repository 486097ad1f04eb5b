//! Which store, namespace and output form: from flags, the environment and `commonhold.toml`, in this order.

use std::{
    collections::BTreeMap,
    env, fmt, fs, io,
    ops::Range,
    path::{Path, PathBuf},
};

use clap::ValueEnum as _;
use commonhold::{
    ErrorKind, Scheme, Store,
    url::{StoreUrl, did_you_mean},
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{
    args::Global,
    failure::{Failure, Result},
    output::Format,
};

const DEFAULT_FILE: &str = "commonhold.toml";
const DEFAULT_BACKEND: &str = "disk";
const DEFAULT_PATH: &str = "./commonhold-data";

/// What the flags, the environment and the file say together.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The store's URL. It may hold credentials: never print it.
    pub(crate) store: String,
    pub(crate) namespace: Option<String>,
    pub(crate) output: Format,
}

impl Settings {
    /// Reads the environment and the file.
    pub(crate) fn load(flags: &Global) -> Result<Self> {
        let environment = environment()?;
        let file = match (&flags.config, environment.get("COMMONHOLD_CONFIG")) {
            (Some(path), _) => Some(read(path)?),
            (None, Some(path)) => Some(read(Path::new(path))?),
            (None, None) if Path::new(DEFAULT_FILE).exists() => Some(read(Path::new(DEFAULT_FILE))?),
            (None, None) => None,
        };
        Self::resolve(flags, &environment, file.unwrap_or_default())
    }

    fn resolve(flags: &Global, environment: &BTreeMap<String, String>, file: File) -> Result<Self> {
        let variable = |name: &str| environment.get(name).cloned();
        let mut store = match variable("COMMONHOLD_STORE") {
            Some(url) => StoreTable { url: Some(url), ..StoreTable::default() },
            None => file.store,
        };
        store.override_from(environment)?;
        let output = match variable("COMMONHOLD_OUTPUT") {
            Some(text) => Some(parse_format("COMMONHOLD_OUTPUT", &text)?),
            None => file.output,
        };
        Ok(Self {
            store: flags.store.clone().map_or_else(|| store.into_url(environment), Ok)?,
            namespace: flags
                .namespace
                .clone()
                .or_else(|| variable("COMMONHOLD_NAMESPACE"))
                .or(file.namespace),
            output: flags.output.or(output).unwrap_or_default(),
        })
    }

    /// Opens the store, or the namespace of it.
    pub(crate) async fn open(&self) -> Result<Store> {
        self.open_url(&self.store).await
    }

    /// The same for another store.
    pub(crate) async fn open_url(&self, url: &str) -> Result<Store> {
        let mut store = commonhold::open(url).await.map_err(|error| match error.kind() {
            ErrorKind::InvalidConfig => {
                Failure::from(error).help("`commonhold --help` shows how stores are named")
            }
            _ => error.into(),
        })?;
        for name in self.namespace.iter().flat_map(|namespace| namespace.split(':')) {
            store = store.namespace(name)?;
        }
        Ok(store)
    }
}

/// The path of a store in a file or directory, as its URL has it.
pub(crate) fn local_path(url: &str) -> Option<PathBuf> {
    let url = StoreUrl::parse(url).ok()?;
    let schemes = commonhold::schemes();
    let scheme = schemes.iter().find(|scheme| scheme.name == url.scheme())?;
    let has_path = !scheme.network && !url.address().is_empty();
    has_path.then(|| PathBuf::from(url.address()))
}

/// The path of a store that opening it would make.
pub(crate) fn missing_path(url: &str) -> Option<PathBuf> {
    local_path(url).filter(|path| !path.exists())
}

/// Where people keep the addresses of their servers: taken for a backend that is asked for by its name alone.
const ADDRESSES: [(&str, &str); 2] = [("redis", "REDIS_URL"), ("postgres", "DATABASE_URL")];

/// The variables that concern this program. An empty one counts as not set.
fn environment() -> Result<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    let concerns = |name: &&str| {
        name.starts_with("COMMONHOLD_") || ADDRESSES.iter().any(|(_, variable)| variable == name)
    };
    for (name, value) in env::vars_os() {
        let Some(name) = name.to_str().filter(concerns) else { continue };
        let value = value
            .into_string()
            .map_err(|_| Failure::usage(format!("the environment variable {name} is not UTF-8")))?;
        if !value.is_empty() {
            variables.insert(name.to_owned(), value);
        }
    }
    Ok(variables)
}

/// What `commonhold.toml` says.
#[derive(Debug, Default)]
struct File {
    store: StoreTable,
    namespace: Option<String>,
    output: Option<Format>,
}

fn read(path: &Path) -> Result<File> {
    let text = fs::read_to_string(path).map_err(|error| {
        let failure = Failure::file(path, &error);
        match error.kind() {
            io::ErrorKind::NotFound => failure.help("--config and COMMONHOLD_CONFIG name a file that exists"),
            _ => failure,
        }
    })?;
    parse(&path.display().to_string(), &text)
}

fn parse(name: &str, text: &str) -> Result<File> {
    let source = Source { name, text };
    let table = DeTable::parse(text)
        .map_err(|error| source.wrong(error.span().unwrap_or_default(), error.message()))?;
    let mut file = File::default();
    for (key, value) in table.get_ref() {
        match key.get_ref().as_ref() {
            "namespace" => file.namespace = Some(source.text_of(value)?),
            "output" => file.output = Some(parse_format(source.line(value.span()), &source.text_of(value)?)?),
            "store" => file.store = source.store(value)?,
            other => return Err(source.unknown(key.span(), other, &["namespace", "output", "store"])),
        }
    }
    Ok(file)
}

fn parse_format(place: impl fmt::Display, text: &str) -> Result<Format> {
    Format::from_str(text, true).map_err(|_| {
        Failure::usage(format!("{place}: the output is \"table\", \"json\" or \"csv\", not {text:?}"))
    })
}

/// The text of a file, for errors that name a line.
struct Source<'a> {
    name: &'a str,
    text: &'a str,
}

impl Source<'_> {
    fn line(&self, span: Range<usize>) -> String {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        format!("{}:{}", self.name, before.matches('\n').count() + 1)
    }

    fn wrong(&self, span: Range<usize>, message: impl fmt::Display) -> Failure {
        Failure::usage(format!("{}: {message}", self.line(span)))
    }

    fn unknown(&self, span: Range<usize>, key: &str, known: &[&str]) -> Failure {
        unknown(&self.line(span), key, known)
    }

    fn table_of<'v, 't>(&self, value: &'v Spanned<DeValue<'t>>) -> Result<&'v DeTable<'t>> {
        match value.get_ref() {
            DeValue::Table(table) => Ok(table),
            _ => Err(self.wrong(value.span(), "this is a table, as in [store]")),
        }
    }

    fn text_of(&self, value: &Spanned<DeValue<'_>>) -> Result<String> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text.clone().into_owned()),
            DeValue::Integer(number) => Ok(number.to_string()),
            DeValue::Float(number) => Ok(number.to_string()),
            DeValue::Boolean(value) => Ok(value.to_string()),
            _ => Err(self.wrong(value.span(), "this takes a text, a number, true or false")),
        }
    }

    /// A text, or several with commas between them.
    fn texts_of(&self, value: &Spanned<DeValue<'_>>) -> Result<String> {
        match value.get_ref() {
            DeValue::Array(values) => {
                let texts: Result<Vec<_>> = values.iter().map(|value| self.text_of(value)).collect();
                Ok(texts?.join(","))
            }
            _ => self.text_of(value),
        }
    }

    fn store(&self, value: &Spanned<DeValue<'_>>) -> Result<StoreTable> {
        let mut store = StoreTable::default();
        for (key, value) in self.table_of(value)? {
            match (key.get_ref().as_ref(), value.get_ref()) {
                (backend, DeValue::Table(options)) => {
                    for (option, value) in options {
                        let place = self.line(option.span());
                        store.set(&place, backend, option.get_ref(), self.texts_of(value)?)?;
                    }
                    if options.is_empty() {
                        Backend::named(&self.line(key.span()), backend)?;
                    }
                }
                ("url", _) => store.url = Some(self.text_of(value)?),
                ("backend", _) => store.backend = Some(self.text_of(value)?),
                (other, _) => return Err(self.unknown(key.span(), other, &["url", "backend"])),
            }
        }
        match (&store.url, &store.backend) {
            (Some(_), Some(_)) => {
                Err(self.wrong(value.span(), "[store] has both url and backend; leave one of them out"))
            }
            _ => Ok(store),
        }
    }
}

fn unknown(place: &str, key: &str, known: &[&str]) -> Failure {
    Failure::usage(format!("{place}: there is no key {key:?}; {}", did_you_mean(key, known)))
}

/// A backend, by the name of its table, and the schemes of its URLs.
struct Backend {
    name: &'static str,
    network: bool,
    options: Vec<&'static str>,
}

impl Backend {
    fn named(place: &str, name: &str) -> Result<Self> {
        let schemes = commonhold::schemes();
        let Some(scheme) = schemes.iter().find(|scheme| scheme.backend == name) else {
            let mut names: Vec<_> = schemes.iter().map(|scheme| scheme.backend).collect();
            names.dedup();
            return Err(unknown(place, name, &names));
        };
        Ok(Self { name: scheme.backend, network: scheme.network, options: scheme.options.clone() })
    }

    /// What its address is called in its table; nothing for memory.
    fn address(&self) -> Option<&'static str> {
        match self.name {
            "memory" => None,
            _ if self.network => Some("url"),
            _ => Some("path"),
        }
    }

    /// The option that a key of its table sets, and the unit of its value where the key names that.
    fn option(&self, place: &str, key: &str) -> Result<(&'static str, &'static str)> {
        if let Some(address) =
            self.address().filter(|address| *address == key || self.network && key == "urls")
        {
            return Ok((address, ""));
        }
        if let Some(option) = self.options.iter().find(|option| **option == key) {
            return Ok((option, ""));
        }
        let alias = ALIASES.iter().find(|(alias, option, _)| *alias == key && self.options.contains(option));
        if let Some((_, option, unit)) = alias {
            return Ok((option, unit));
        }
        let known: Vec<_> = self.address().into_iter().chain(self.options.iter().copied()).collect();
        Err(unknown(place, key, &known))
    }
}

/// Longer names of options, and the unit of a number that is given under them.
const ALIASES: &[(&str, &str, &str)] = &[
    ("key_prefix", "prefix", ""),
    ("instance_name", "prefix", ""),
    ("default_ttl_secs", "ttl", "s"),
    ("connect_timeout_secs", "connect_timeout", "s"),
    ("read_timeout_secs", "read_timeout", "s"),
    ("write_timeout_secs", "write_timeout", "s"),
    ("max_retries", "retries", ""),
    ("retry_base_delay_ms", "retry_base", "ms"),
    ("retry_max_delay_secs", "retry_max", "s"),
    ("cluster_mode", "cluster", ""),
    ("tls_enabled", "tls", ""),
    ("pipeline_batch_size", "pipeline", ""),
];

/// The table `[store]` with those below it, and what the environment changes in them.
#[derive(Debug, Default)]
struct StoreTable {
    url: Option<String>,
    backend: Option<String>,
    /// By backend and name.
    options: BTreeMap<(&'static str, &'static str), String>,
}

impl StoreTable {
    fn set(&mut self, place: &str, backend: &str, key: &str, value: String) -> Result<()> {
        let backend = Backend::named(place, backend)?;
        let (option, unit) = backend.option(place, key)?;
        self.options.insert((backend.name, option), value + unit);
        Ok(())
    }

    /// `COMMONHOLD_STORE__URL`, `COMMONHOLD_STORE__BACKEND`, `COMMONHOLD_STORE__DISK__DURABILITY`, ...
    fn override_from(&mut self, environment: &BTreeMap<String, String>) -> Result<()> {
        for (variable, value) in environment {
            let Some(key) = variable.strip_prefix("COMMONHOLD_STORE__") else { continue };
            let key = key.to_ascii_lowercase();
            match key.split_once("__") {
                Some((backend, option)) => self.set(variable, backend, option, value.clone())?,
                None if key == "url" => (self.url, self.backend) = (Some(value.clone()), None),
                None if key == "backend" => (self.url, self.backend) = (None, Some(value.clone())),
                None => return Err(unknown(variable, &key, &["url", "backend"])),
            }
        }
        Ok(())
    }

    /// The URL, with the options of its backend added to those that it has.
    fn into_url(mut self, environment: &BTreeMap<String, String>) -> Result<String> {
        let (mut url, backend) = match self.url.take() {
            Some(url) => {
                let scheme = url.split(':').next().unwrap_or_default().to_ascii_lowercase();
                let is_it = |known: &&Scheme| known.name == scheme;
                let backend = commonhold::schemes().iter().find(is_it).map_or("", |scheme| scheme.backend);
                if let Some(((_, name), _)) = self
                    .options
                    .iter()
                    .find(|((of, name), _)| *of == backend && ["path", "url"].contains(name))
                {
                    let message = format!("store.{backend}.{name}: the URL of the store names it already");
                    return Err(Failure::usage(message));
                }
                (url, backend)
            }
            None => {
                let name = self.backend.take().unwrap_or_else(|| DEFAULT_BACKEND.to_owned());
                let backend = Backend::named("store.backend", &name)?;
                (self.address(&backend, environment)?, backend.name)
            }
        };
        for ((_, name), value) in self.options.into_iter().filter(|((of, _), _)| *of == backend) {
            if has_option(&url, name) {
                // What the address says counts.
                continue;
            }
            let separator = if url.contains('?') { '&' } else { '?' };
            let value: String = form_urlencoded::byte_serialize(value.as_bytes()).collect();
            // A plus is a plus.
            let value = value.replace('+', "%20");
            url = format!("{url}{separator}{name}={value}");
        }
        Ok(url)
    }

    /// The address of a backend that is given by its name, as the beginning of a URL.
    fn address(&mut self, backend: &Backend, environment: &BTreeMap<String, String>) -> Result<String> {
        let name = backend.name;
        let given = backend.address().and_then(|address| self.options.remove(&(name, address)));
        if backend.network {
            let variable = ADDRESSES.iter().find(|(of, _)| *of == name).map(|(_, variable)| *variable);
            let from_variable = || variable.and_then(|variable| environment.get(variable).cloned());
            let help = variable.map_or_else(String::new, |variable| format!(" or the variable {variable}"));
            let missing = || Failure::usage(format!("store.{name}.url is missing: set it{help}"));
            return Ok(joined(&given.or_else(from_variable).ok_or_else(missing)?));
        }
        let default = if name == DEFAULT_BACKEND { DEFAULT_PATH } else { "" };
        let path = given.unwrap_or_else(|| default.to_owned());
        if path.contains('?') {
            return Err(Failure::usage(format!("store.{name}.path: {path:?} has a '?' in it")));
        }
        Ok(format!("{name}:{path}"))
    }
}

fn has_option(url: &str, name: &str) -> bool {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    form_urlencoded::parse(query.as_bytes()).any(|(given, _)| given == name)
}

/// One URL for several that name a server each: `redis://a,redis://b` is `redis://a,b`.
fn joined(urls: &str) -> String {
    match urls.split_once("://") {
        Some((scheme, _)) => {
            let (first, rest) = urls.split_at(scheme.len() + 3);
            format!("{first}{}", rest.replace(&format!(",{first}"), ","))
        }
        None => urls.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flags: &[&str], environment: &[(&str, &str)], file: &str) -> Result<Settings> {
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            global: Global,
        }
        let flags = <Flags as clap::Parser>::parse_from(std::iter::once(&"").chain(flags)).global;
        let environment =
            environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Settings::resolve(&flags, &environment, parse("commonhold.toml", file)?)
    }

    fn store(flags: &[&str], environment: &[(&str, &str)], file: &str) -> String {
        resolve(flags, environment, file).unwrap().store
    }

    const FILE: &str = "output = \"json\"\nnamespace = \"file\"\n[store]\nbackend = \"disk\"\n[store.disk]\npath = \"a b\"\ndurability = \"buffered\"\n[store.memory]\ncapacity = 10\n";

    #[test]
    fn flags_win_over_the_environment_over_the_file_over_the_default() {
        let environment = [
            ("COMMONHOLD_STORE", "disk:./env"),
            ("COMMONHOLD_NAMESPACE", "env"),
            ("COMMONHOLD_OUTPUT", "table"),
        ];
        assert_eq!(store(&[], &[], ""), "disk:./commonhold-data");
        assert_eq!(store(&[], &[], FILE), "disk:a b?durability=buffered");
        assert_eq!(store(&[], &environment, FILE), "disk:./env");
        assert_eq!(store(&["--store", "memory:"], &environment, FILE), "memory:");

        let resolved = |flags: &[&str], environment: &[_], file| {
            let settings = resolve(flags, environment, file).unwrap();
            (settings.namespace.unwrap_or_default(), settings.output)
        };
        assert_eq!(resolved(&[], &[], ""), (String::new(), Format::Table));
        assert_eq!(resolved(&[], &[], FILE), ("file".to_owned(), Format::Json));
        assert_eq!(resolved(&[], &environment, FILE), ("env".to_owned(), Format::Table));
        let flags = ["--namespace", "flag", "--output", "json"];
        assert_eq!(resolved(&flags, &environment, FILE), ("flag".to_owned(), Format::Json));
    }

    #[test]
    fn every_key_of_the_file_has_a_variable_that_overrides_it() {
        assert_eq!(
            store(&[], &[("COMMONHOLD_STORE__DISK__DURABILITY", "interval:10ms")], FILE),
            "disk:a b?durability=interval%3A10ms"
        );
        assert_eq!(store(&[], &[("COMMONHOLD_STORE__DISK__PATH", "x")], FILE), "disk:x?durability=buffered");
        assert_eq!(store(&[], &[("COMMONHOLD_STORE__BACKEND", "memory")], FILE), "memory:?capacity=10");
        assert_eq!(
            store(&[], &[("COMMONHOLD_STORE__URL", "disk:y?ttl=1h")], FILE.replace("path", "cache").as_str()),
            "disk:y?ttl=1h&cache=a%20b&durability=buffered"
        );
        let both = [("COMMONHOLD_STORE", "disk:z"), ("COMMONHOLD_STORE__DISK__TTL", "1h")];
        assert_eq!(store(&[], &both, FILE), "disk:z?ttl=1h");
    }

    fn assert_refused(environment: &[(&str, &str)], file: &str, expected: &[&str]) {
        let failure = resolve(&[], environment, file).unwrap_err().to_string();
        for part in expected {
            assert!(failure.contains(part), "{file:?} {environment:?}: {failure} lacks {part}");
        }
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_what_it_might_have_meant() {
        assert_refused(&[], "\noutptu = \"json\"", &["commonhold.toml:2", "\"outptu\"", "\"output\""]);
        assert_refused(&[], "[store]\nurll = \"memory:\"", &["commonhold.toml:2", "\"url\""]);
        assert_refused(&[], "[store.disk]\n\ndurabilty = 1", &["commonhold.toml:3", "\"durability\""]);
        assert_refused(&[], "[store.dsk]\npath = 1", &["commonhold.toml:2", "\"disk\""]);
        assert_refused(&[], "[store.memory]\npath = 1", &["commonhold.toml:2", "\"path\""]);
        assert_refused(
            &[("COMMONHOLD_STORE__DISK__CASH", "1")],
            "",
            &["COMMONHOLD_STORE__DISK__CASH", "\"cache\""],
        );
        assert_refused(
            &[("COMMONHOLD_STORE__BAKEND", "1")],
            "",
            &["COMMONHOLD_STORE__BAKEND", "\"backend\""],
        );
    }

    #[test]
    fn servers_are_named_in_the_file_or_in_the_variables_that_people_have() {
        let file = "[store]\nbackend = \"memcached\"\n[store.memcached]\nurls = [\"memcached://a:1\", \"memcached://b\"]\n\
            key_prefix = \"app:\"\ndefault_ttl_secs = 3600\nmax_retries = 5\nretry_base_delay_ms = 50\n";
        let url = "memcached://a:1,b?prefix=app%3A&retries=5&retry_base=50ms&ttl=3600s";
        assert_eq!(store(&[], &[], file), url);
        let variable = [("COMMONHOLD_STORE__MEMCACHED__CONNECT_TIMEOUT_SECS", "2")];
        assert!(store(&[], &variable, file).contains("connect_timeout=2s"));
        let url = [("COMMONHOLD_STORE__URL", "memcached://c?prefix=x")];
        let table = "[store.memcached]\nkey_prefix = \"app:\"\nqueue = 7\n";
        assert_eq!(store(&[], &url, table), "memcached://c?prefix=x&queue=7");
        assert_refused(&[], "[store]\nbackend = \"memcached\"", &["store.memcached.url"]);
        assert_refused(&[], "[store.memcached]\ncluster_mode = true", &["commonhold.toml:2", "cluster_mode"]);
    }

    #[test]
    #[cfg(feature = "redis")]
    fn every_key_of_redis_is_taken() {
        let file = "[store]\nbackend = \"redis\"\n[store.redis]\nkey_prefix = \"llm_optimizer:\"\n\
            default_ttl_secs = 3600\nmin_connections = 10\nmax_connections = 50\nconnect_timeout_secs = 5\n\
            read_timeout_secs = 3\nwrite_timeout_secs = 3\nmax_retries = 3\nretry_base_delay_ms = 100\n\
            retry_max_delay_secs = 5\ncluster_mode = true\ntls_enabled = false\npipeline_batch_size = 100\n";
        let options = "?cluster=true&connect_timeout=5s&max_connections=50&min_connections=10&pipeline=100\
            &prefix=llm_optimizer%3A&read_timeout=3s&retries=3&retry_base=100ms&retry_max=5s&tls=false&ttl=3600s&write_timeout=3s";
        let urls = "urls = [\"redis://redis-1:6379\", \"redis://redis-2:6379\", \"redis://redis-3:6379\"]\n";
        let expected = format!("redis://redis-1:6379,redis-2:6379,redis-3:6379{options}");
        assert_eq!(store(&[], &[], &format!("{file}{urls}")), expected);
        let variable = [("REDIS_URL", "redis://:hunter2@r/3")];
        assert_eq!(store(&[], &variable, file), format!("redis://:hunter2@r/3{options}"));
        // It does not lead elsewhere who has asked for nothing.
        assert_eq!(store(&[], &variable, ""), "disk:./commonhold-data");
        let connections = [("COMMONHOLD_STORE__REDIS__MAX_CONNECTIONS", "7"), variable[0]];
        assert!(store(&[], &connections, file).contains("max_connections=7"));
        assert_refused(&[], "[store]\nbackend = \"redis\"", &["store.redis.url", "REDIS_URL"]);
    }

    #[test]
    fn a_value_that_makes_no_sense_is_refused_with_its_line() {
        assert_refused(&[], "output = \"jsn\"", &["commonhold.toml:1", "json"]);
        assert_refused(&[], "output = [1]", &["commonhold.toml:1", "text"]);
        assert_refused(&[], "store = 1", &["commonhold.toml:1", "table"]);
        assert_refused(&[], "a = = 1", &["commonhold.toml:1"]);
        assert_refused(&[], "[store]\nurl = \"memory:\"\nbackend = \"disk\"", &["commonhold.toml:", "both"]);
        assert_refused(&[], "[store]\nbackend = \"dsik\"", &["store.backend", "disk"]);
        assert_refused(&[], "[store]\nurl=\"disk:x\"\n[store.disk]\npath = \"y\"", &["store.disk.path"]);
        assert_refused(&[("COMMONHOLD_OUTPUT", "1")], "", &["COMMONHOLD_OUTPUT", "table"]);
    }
}
