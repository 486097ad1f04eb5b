//! The feature matrix of the documentation says what the stores declare, and names a test for every tick.
//!
//! `cargo xtask matrix` writes it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::{env, fmt::Write as _, fs, path::PathBuf};

use commonhold::{Capabilities, Maintenance};
use commonhold_testkit::servers::{Postgres, shared, unique};

const STORES: [&str; 6] = ["memory", "disk", "sled", "redis", "postgres", "memcached"];

/// A feature: its name, whether a store has it, and what holds it to that.
struct Feature {
    name: &'static str,
    has: fn(&Capabilities) -> bool,
    proof: Proof,
}

/// Where the test of a tick is.
enum Proof {
    /// A case of the conformance kit, which every store runs that declares the feature.
    Case(&'static str),
    /// For each store, a file and a test in it.
    Tests(&'static [(&'static str, &'static str, &'static str)]),
}

use Proof::{Case, Tests};

const MATRIX: &str = "crates/commonhold/tests/matrix.rs";

const FEATURES: &[Feature] = &[
    Feature {
        name: "TTL",
        has: |can| can.ttl,
        proof: Case("an_entry_expires_when_its_time_is_over_and_not_before"),
    },
    Feature { name: "Transactions", has: |can| can.transactions, proof: Case("write_skew_is_prevented") },
    Feature { name: "Batches", has: |_| true, proof: Case("a_batch_takes_ten_thousand_writes") },
    Feature {
        name: "Atomic batches",
        has: |can| can.atomic_batch,
        proof: Case("an_unmet_condition_stops_the_whole_batch"),
    },
    Feature { name: "Atomic operations", has: |_| true, proof: Case("no_increment_is_lost_or_doubled") },
    Feature {
        name: "Locks between processes",
        has: |can| can.ttl && can.shared,
        proof: Case("of_racing_set_if_absent_over_an_expired_entry_one_wins"),
    },
    Feature {
        name: "Persistence",
        has: |can| can.durable,
        proof: Tests(&[
            (
                "disk",
                "crates/backends/disk/tests/durability.rs",
                "every_acknowledged_write_survives_sigkill_and_no_batch_is_half_there",
            ),
            (
                "sled",
                "crates/backends/sled/tests/existing.rs",
                "what_plain_sled_wrote_is_read_and_what_is_written_plain_sled_reads",
            ),
            ("postgres", MATRIX, "what_postgres_has_acknowledged_is_there_after_it_was_killed"),
        ]),
    },
    Feature {
        name: "Sharing between processes",
        has: |can| can.shared,
        proof: Tests(&[
            ("redis", MATRIX, "what_one_process_puts_another_gets"),
            ("postgres", MATRIX, "what_one_process_puts_another_gets"),
            ("memcached", MATRIX, "what_one_process_puts_another_gets"),
        ]),
    },
    Feature {
        name: "Compression",
        has: |can| can.compression,
        proof: Tests(&[("disk", MATRIX, "compressed_values_take_less_space_on_disk")]),
    },
    Feature {
        name: "SQL",
        has: |can| can.sql,
        proof: Tests(&[(
            "postgres",
            "crates/backends/postgres/tests/it/table.rs",
            "plain_sql_reads_the_view",
        )]),
    },
    Feature {
        name: "Publish/subscribe",
        has: |can| can.publish,
        proof: Case("a_subscriber_receives_messages_as_they_were_published"),
    },
    Feature {
        name: "Clustering",
        has: |can| can.clustering,
        proof: Tests(&[
            ("redis", "crates/backends/redis/tests/it/conformance.rs", "cluster"),
            (
                "memcached",
                "crates/backends/memcached/tests/faults.rs",
                "with_several_servers_only_the_share_of_the_one_that_is_away_is_missed",
            ),
        ]),
    },
];

/// The names of all cases of the conformance kit.
macro_rules! names {
    ([] $($module:ident::$name:ident $needs:tt,)*) => { &[$(stringify!($name)),*] };
}
const CASES: &[&str] = commonhold_testkit::__for_each_case! { [names] };

fn url(store: &str, directory: &tempfile::TempDir) -> String {
    let path = directory.path().join(store);
    match store {
        "memory" => "memory:".to_owned(),
        "redis" => format!("{}?prefix={}:", shared::redis_url(), unique("matrix")),
        "postgres" => {
            let url = shared::postgres_url();
            format!("{url}{}table={}", if url.contains('?') { '&' } else { '?' }, unique("matrix"))
        }
        "memcached" => format!("{}?prefix={}:", shared::memcached_url(), unique("matrix")),
        _ => format!("{store}:{}", path.display()),
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// As it is by default, not as fast as the servers of other tests.
fn durable_postgres() -> Postgres {
    Postgres::builder()
        .config("fsync = on")
        .config("synchronous_commit = on")
        .config("full_page_writes = on")
        .start()
}

async fn matrix() -> String {
    let directory = tempfile::tempdir().unwrap();
    let postgres = durable_postgres();
    let mut declared = Vec::new();
    for store in STORES {
        let url = if store == "postgres" { postgres.url() } else { url(store, &directory) };
        declared.push(commonhold::open(&url).await.unwrap().capabilities());
    }
    let mut page = String::from(
        "# Feature matrix\n\nWhat each store declares in its default configuration, written by `cargo xtask matrix`. \
         A tick is a promise: it is atomic\nwhere it says so, and the test below holds the store to it. What has no \
         tick is refused and never emulated.\n\n",
    );
    let _ = writeln!(page, "| feature | {} |\n|---|{}", STORES.join(" | "), "---|".repeat(STORES.len()));
    for feature in FEATURES {
        let ticks: Vec<_> = declared.iter().map(|can| if (feature.has)(can) { "✓" } else { "✗" }).collect();
        let _ = writeln!(page, "| {} | {} |", feature.name, ticks.join(" | "));
    }
    page.push_str(
        "\nMemcached writes each item of a batch by itself. Redis keeps what its server is configured to keep, \
         which the library\ncannot promise; `commonhold doctor` warns. Redis in a Cluster has transactions and \
         atomic batches within one slot.\n\n## The tests\n\n| feature | test |\n|---|---|\n",
    );
    for feature in FEATURES {
        let test = match &feature.proof {
            Case(name) => format!("`{name}` of the conformance kit"),
            Tests(tests) => {
                let one = |(store, file, name): &(&str, &str, &str)| format!("{store}: `{name}` in `{file}`");
                tests.iter().map(one).collect::<Vec<_>>().join("<br>")
            }
        };
        let _ = writeln!(page, "| {} | {test} |", feature.name);
    }
    for feature in FEATURES {
        for (store, can) in STORES.iter().zip(&declared) {
            if (feature.has)(can) {
                assert_proven(feature, store);
            }
        }
    }
    page
}

fn assert_proven(feature: &Feature, store: &str) {
    match &feature.proof {
        Case(name) => assert!(CASES.contains(name), "{name} is no case"),
        Tests(tests) => {
            let test = tests.iter().find(|(of, _, _)| *of == store);
            let (_, file, name) = test.unwrap_or_else(|| panic!("{} of {store} has no test", feature.name));
            let source = fs::read_to_string(root().join(file)).unwrap();
            let is_there =
                source.contains(&format!("fn {name}(")) || source.contains(&format!("conformance!({name},"));
            assert!(is_there, "{file} has no test {name}");
        }
    }
}

#[tokio::test]
async fn the_feature_matrix_says_what_the_stores_declare_and_names_a_test_for_every_tick() {
    let (file, matrix) = (root().join("docs/feature-matrix.md"), matrix().await);
    if env::var_os("COMMONHOLD_WRITE_MATRIX").is_some() {
        fs::write(&file, &matrix).unwrap();
    }
    let written = fs::read_to_string(&file).unwrap_or_default();
    assert!(written == matrix, "docs/feature-matrix.md is out of date: `cargo xtask matrix` writes it");
}

#[tokio::test]
async fn what_one_process_puts_another_gets() {
    let directory = tempfile::tempdir().unwrap();
    for store in ["redis", "postgres", "memcached"] {
        let url = url(store, &directory);
        let (one, other) = (commonhold::open(&url).await.unwrap(), commonhold::open(&url).await.unwrap());
        one.put("k", "v").await.unwrap();
        assert_eq!(other.get("k").await.unwrap().unwrap(), "v", "{store}");
        assert!(!other.set_if_not_exists("k", "w").await.unwrap(), "{store}");
    }
}

#[tokio::test]
async fn what_postgres_has_acknowledged_is_there_after_it_was_killed() {
    let server = durable_postgres();
    let store = commonhold::open(&server.url()).await.unwrap();
    store.put("k", "v").await.unwrap();
    drop(store);
    server.kill();
    server.start_again();
    let store = commonhold::open(&server.url()).await.unwrap();
    assert_eq!(store.get("k").await.unwrap().unwrap(), "v");
}

#[tokio::test]
async fn compressed_values_take_less_space_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let mut bytes = Vec::new();
    for compression in ["true", "false"] {
        let path = directory.path().join(compression);
        let url = format!("disk:{}?compression={compression}&durability=buffered", path.display());
        let store = commonhold::open(&url).await.unwrap();
        let entries = (0..1_000).map(|i| (format!("k{i}"), vec![b'x'; 4_000]));
        store.batch_put(entries).await.unwrap();
        store.backend().maintain(Maintenance::Compact).await.unwrap();
        bytes.push(store.stats().await.unwrap().disk_bytes.unwrap());
    }
    // Beside the values there are journals of the same size.
    assert!(bytes[0] + 2_000_000 < bytes[1], "{bytes:?}");
}
