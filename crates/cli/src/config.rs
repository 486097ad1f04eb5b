//! Which store, namespace and output form: from flags, the environment and `commonhold.toml`, in this order.

use std::{collections::BTreeMap, env, fmt, fs, io, ops::Range, path::Path};

use clap::ValueEnum as _;
use commonhold::{ErrorKind, Store, url::did_you_mean};
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
            store: flags.store.clone().map_or_else(|| store.into_url(), Ok)?,
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

/// The variables that concern this program. An empty one counts as not set.
fn environment() -> Result<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    for (name, value) in env::vars_os() {
        let Some(name) = name.to_str().filter(|name| name.starts_with("COMMONHOLD_")) else { continue };
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

    fn store(&self, value: &Spanned<DeValue<'_>>) -> Result<StoreTable> {
        let mut store = StoreTable::default();
        for (key, value) in self.table_of(value)? {
            match (key.get_ref().as_ref(), value.get_ref()) {
                (backend, DeValue::Table(options)) => {
                    for (option, value) in options {
                        let place = self.line(option.span());
                        store.set(&place, backend, option.get_ref(), self.text_of(value)?)?;
                    }
                    if options.is_empty() {
                        known_options(&self.line(key.span()), backend)?;
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

/// The names of a backend's options: those of its URL, and the URL's path where it has one.
fn known_options(place: &str, backend: &str) -> Result<Vec<&'static str>> {
    let Some((_, options)) = commonhold::STORES.iter().find(|(scheme, _)| *scheme == backend) else {
        let schemes: Vec<_> = commonhold::STORES.iter().map(|(scheme, _)| *scheme).collect();
        return Err(unknown(place, backend, &schemes));
    };
    let path = (backend == DEFAULT_BACKEND).then_some("path");
    Ok(path.into_iter().chain(options.iter().copied()).collect())
}

/// The table `[store]` with those below it, and what the environment changes in them.
#[derive(Debug, Default)]
struct StoreTable {
    url: Option<String>,
    backend: Option<String>,
    /// By backend and name.
    options: BTreeMap<(String, String), String>,
}

impl StoreTable {
    fn set(&mut self, place: &str, backend: &str, option: &str, value: String) -> Result<()> {
        let known = known_options(place, backend)?;
        if !known.contains(&option) {
            return Err(unknown(place, option, &known));
        }
        self.options.insert((backend.to_owned(), option.to_owned()), value);
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
    fn into_url(mut self) -> Result<String> {
        let (mut url, backend) = match self.url {
            Some(url) => {
                let backend = url.split(':').next().unwrap_or_default().to_owned();
                (url, backend)
            }
            None => {
                let backend = self.backend.unwrap_or_else(|| DEFAULT_BACKEND.to_owned());
                known_options("store.backend", &backend)?;
                let default = if backend == DEFAULT_BACKEND { DEFAULT_PATH } else { "" };
                let path = self.options.remove(&(backend.clone(), "path".to_owned()));
                let path = path.unwrap_or_else(|| default.to_owned());
                if path.contains('?') {
                    return Err(Failure::usage(format!("store.{backend}.path: {path:?} has a '?' in it")));
                }
                (format!("{backend}:{path}"), backend)
            }
        };
        for ((_, name), value) in self.options.into_iter().filter(|((of, _), _)| *of == backend) {
            if name == "path" {
                return Err(Failure::usage(format!(
                    "store.{backend}.path: the URL of the store names it already"
                )));
            }
            let separator = if url.contains('?') { '&' } else { '?' };
            let value: String = form_urlencoded::byte_serialize(value.as_bytes()).collect();
            url = format!("{url}{separator}{name}={value}");
        }
        Ok(url)
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
            "disk:y?ttl=1h&cache=a+b&durability=buffered"
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
