//! The text of every statement on the table.

use tokio_postgres::types::Type;

use crate::names::{Names, literal};

/// A statement and the types of its parameters.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    pub(crate) sql: String,
    pub(crate) types: Vec<Type>,
    /// Whether it may change something: if its answer is lost, nobody knows whether it did.
    pub(crate) writes: bool,
}

macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// The statements, by name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Sql {
            $($(#[$doc])* $name,)+
        }

        impl Sql {
            /// How many there are.
            pub(crate) const COUNT: usize = [$(Self::$name),+].len();

            /// The texts of all, in the order of their numbers.
            pub(crate) fn texts(names: &Names) -> Vec<Text> {
                [$(Self::$name),+].into_iter().map(|sql| sql.text(names)).collect()
            }
        }
    };
}

statements! {
    /// (key): value, expires_at, now.
    Get,
    /// (key): value, expires_at, now; one row, with no value where there is no row.
    Read,
    /// (keys): key, value, expires_at, now.
    GetMany,
    /// (key, value): for ever. What it does not have to work out is a tenth of a put.
    PutForever,
    /// (key, value, ttl, keep).
    Put,
    /// (key, value, ttl).
    PutAbsent,
    /// (key, value, ttl, keep).
    PutPresent,
    /// (key, value, ttl, keep, expected).
    PutEquals,
    /// (keys, values): for ever; the keys in order, each once.
    PutManyForever,
    /// (keys, values, ttls): the same with times to live.
    PutMany,
    /// (key).
    Delete,
    /// (key, expected).
    DeleteEquals,
    /// (keys): key.
    DeleteMany,
    /// (key, value, expires_at): writes where there is nothing.
    Create,
    /// (key, value, expires_at, old value, old expires_at): writes over what was read.
    Swap,
    /// (key, old value, old expires_at): deletes what was read.
    Remove,
    /// (key, delta): value. Adds to what is there if it is a number of up to 18 digits.
    Increment,
    /// (keys): locks the rows under these keys, in order, and makes those that are missing, invisibly.
    Lock,
    /// (keys): key, value, expires_at, now of locked rows, visible or not.
    ReadLocked,
    /// (keys, values, expires_at): writes over locked rows.
    WriteLocked,
    /// (keys): deletes locked rows.
    DeleteLocked,
    /// (from, after, end, limit, bytes): key, value, expires_at, now.
    Scan,
    /// (from, after, end, limit): key, expires_at, now.
    ScanKeys,
    /// (from, after, end, limit): the last key and the number of keys.
    Count,
    /// (from, after, end, limit): the last key and the number of keys deleted.
    Clear,
    /// (limit): deletes expired rows, unless another does.
    Sweep,
    /// (payload).
    Publish,
    /// (): now.
    Now,
    /// (): up to where the primary's log has what was acknowledged, the timeline, now.
    Written,
    /// (): up to where a replica shows the log, NULL if it is none; now.
    Replayed,
    /// (): figures about the table.
    Stats,
    /// (): how the server is.
    Health,
}

/// The expiry of rows that only hold a lock. They are gone before their transaction commits, and expired anyway.
pub(crate) const PLACEHOLDER: &str = "'-infinity'::timestamptz";

/// Whether a row is there, for those who look at it.
const LIVE: &str = "(t.expires_at IS NULL OR t.expires_at > clock_timestamp())";

/// What a put does to an earlier entry.
pub(crate) const OVERWRITE: &str =
    "ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at";

/// A time to live in microseconds from now, in whole milliseconds.
pub(crate) fn expiry(ttl: &str) -> String {
    format!("date_trunc('milliseconds', clock_timestamp() + ({ttl} + 999) * interval '1 microsecond')")
}

impl Sql {
    fn text(self, names: &Names) -> Text {
        let (types, writes, sql) = match self {
            Self::Get | Self::Read | Self::GetMany | Self::Stats => self.read(names),
            Self::Now | Self::Written | Self::Replayed | Self::Health => {
                (vec![], false, self.of_server(names))
            }
            Self::Scan | Self::ScanKeys | Self::Count => self.range(names),
            Self::Lock | Self::ReadLocked | Self::WriteLocked | Self::DeleteLocked => self.locked(names),
            Self::Create | Self::Swap | Self::Remove => self.optimistic(names),
            Self::Increment => (vec![Type::BYTEA, Type::INT8], true, increment(names)),
            Self::Clear | Self::Sweep | Self::Publish => self.service(names),
            _ => self.write(names),
        };
        Text { sql, types, writes }
    }

    fn read(self, Names { table, .. }: &Names) -> (Vec<Type>, bool, String) {
        match self {
            Self::Get => (
                vec![Type::BYTEA],
                false,
                format!(
                    "SELECT t.value, t.expires_at, clock_timestamp() FROM {table} t WHERE t.key = $1 AND {LIVE}"
                ),
            ),
            Self::Read => (
                vec![Type::BYTEA],
                false,
                format!(
                    "SELECT t.value, t.expires_at, n.now FROM (SELECT clock_timestamp() AS now) n \
                     LEFT JOIN {table} t ON t.key = $1"
                ),
            ),
            Self::GetMany => (
                vec![Type::BYTEA_ARRAY],
                false,
                format!(
                    "SELECT t.key, t.value, t.expires_at, clock_timestamp() FROM {table} t \
                     WHERE t.key = ANY($1) AND {LIVE}"
                ),
            ),
            _ => {
                let table = literal(table);
                (
                    vec![],
                    false,
                    format!(
                        "SELECT pg_database_size(current_database()), pg_total_relation_size({table}::regclass), \
                         pg_relation_size({table}::regclass), pg_indexes_size({table}::regclass), \
                         coalesce(s.n_live_tup, 0), coalesce(s.n_dead_tup, 0) \
                         FROM (SELECT {table}::regclass::oid AS id) x LEFT JOIN pg_stat_all_tables s ON s.relid = x.id"
                    ),
                )
            }
        }
    }

    fn of_server(self, Names { table, .. }: &Names) -> String {
        match self {
            Self::Health => health(table),
            Self::Written => WRITTEN.to_owned(),
            Self::Replayed => {
                "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END, clock_timestamp()"
                    .to_owned()
            }
            _ => "SELECT clock_timestamp()".to_owned(),
        }
    }

    fn write(self, Names { table, .. }: &Names) -> (Vec<Type>, bool, String) {
        let ttl = expiry("$3");
        let upsert = format!(
            "INSERT INTO {table} AS t (key, value, expires_at) VALUES ($1, $2, {ttl}) ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires_at ="
        );
        let update = format!(
            "UPDATE {table} t SET value = $2, expires_at = CASE WHEN $4 THEN t.expires_at ELSE {ttl} END \
             WHERE t.key = $1 AND {LIVE}"
        );
        let put = vec![Type::BYTEA, Type::BYTEA, Type::INT8, Type::BOOL];
        let (types, sql) = match self {
            Self::PutForever => (
                vec![Type::BYTEA, Type::BYTEA],
                format!("INSERT INTO {table} AS t (key, value) VALUES ($1, $2) {OVERWRITE}"),
            ),
            Self::PutManyForever => (
                vec![Type::BYTEA_ARRAY, Type::BYTEA_ARRAY],
                format!("INSERT INTO {table} AS t (key, value) SELECT unnest($1), unnest($2) {OVERWRITE}"),
            ),
            Self::Put => (
                put,
                format!("{upsert} CASE WHEN $4 AND {LIVE} THEN t.expires_at ELSE excluded.expires_at END"),
            ),
            Self::PutAbsent => (
                vec![Type::BYTEA, Type::BYTEA, Type::INT8],
                format!("{upsert} excluded.expires_at WHERE NOT {LIVE}"),
            ),
            Self::PutPresent => (put, update),
            Self::PutEquals => ([put, vec![Type::BYTEA]].concat(), format!("{update} AND t.value = $5")),
            Self::PutMany => (
                vec![Type::BYTEA_ARRAY, Type::BYTEA_ARRAY, Type::INT8_ARRAY],
                format!(
                    "INSERT INTO {table} AS t (key, value, expires_at) \
                     SELECT n.key, n.value, {} FROM unnest($1, $2, $3) AS n(key, value, ttl) {OVERWRITE}",
                    expiry("n.ttl")
                ),
            ),
            Self::DeleteEquals => (
                vec![Type::BYTEA, Type::BYTEA],
                format!("DELETE FROM {table} t WHERE t.key = $1 AND t.value = $2 AND {LIVE}"),
            ),
            Self::DeleteMany => (
                vec![Type::BYTEA_ARRAY],
                format!(
                    "WITH l AS MATERIALIZED (SELECT t.key FROM {table} t WHERE t.key = ANY($1) AND {LIVE} \
                     ORDER BY t.key FOR UPDATE) \
                     DELETE FROM {table} t USING l WHERE t.key = l.key RETURNING t.key"
                ),
            ),
            _ => (vec![Type::BYTEA], format!("DELETE FROM {table} t WHERE t.key = $1 AND {LIVE}")),
        };
        (types, true, sql)
    }

    fn optimistic(self, Names { table, .. }: &Names) -> (Vec<Type>, bool, String) {
        let (value, time) = (Type::BYTEA, Type::TIMESTAMPTZ);
        let (types, sql) = match self {
            Self::Create => (
                vec![value.clone(), value, time],
                format!(
                    "INSERT INTO {table} AS t (key, value, expires_at) VALUES ($1, $2, $3) ON CONFLICT (key) \
                     DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at WHERE NOT {LIVE}"
                ),
            ),
            Self::Swap => (
                vec![value.clone(), value.clone(), time.clone(), value, time],
                format!(
                    "UPDATE {table} t SET value = $2, expires_at = $3 \
                     WHERE t.key = $1 AND t.value = $4 AND t.expires_at IS NOT DISTINCT FROM $5 AND {LIVE}"
                ),
            ),
            _ => (
                vec![value.clone(), value, time],
                format!(
                    "DELETE FROM {table} t \
                     WHERE t.key = $1 AND t.value = $2 AND t.expires_at IS NOT DISTINCT FROM $3 AND {LIVE}"
                ),
            ),
        };
        (types, true, sql)
    }

    fn locked(self, Names { table, .. }: &Names) -> (Vec<Type>, bool, String) {
        let keys = Type::BYTEA_ARRAY;
        let (types, sql) = match self {
            // An update that is never carried out locks the row all the same.
            Self::Lock => (
                vec![keys],
                format!(
                    "INSERT INTO {table} AS t (key, value, expires_at) \
                     SELECT n.key, ''::bytea, {PLACEHOLDER} FROM unnest($1) AS n(key) \
                     ON CONFLICT (key) DO UPDATE SET value = t.value WHERE false"
                ),
            ),
            Self::ReadLocked => (
                vec![keys],
                format!(
                    "SELECT t.key, t.value, t.expires_at, (SELECT clock_timestamp()) FROM {table} t \
                     WHERE t.key = ANY($1)"
                ),
            ),
            Self::WriteLocked => (
                vec![keys.clone(), keys, Type::TIMESTAMPTZ_ARRAY],
                format!(
                    "UPDATE {table} t SET value = n.value, expires_at = n.expires_at \
                     FROM unnest($1, $2, $3) AS n(key, value, expires_at) WHERE t.key = n.key"
                ),
            ),
            _ => (vec![keys], format!("DELETE FROM {table} t WHERE t.key = ANY($1)")),
        };
        (types, true, sql)
    }

    /// `$2` says whether the range begins after `$1` or with it.
    fn range(self, Names { table, .. }: &Names) -> (Vec<Type>, bool, String) {
        let mut types = vec![Type::BYTEA, Type::BOOL, Type::BYTEA, Type::INT8];
        let page = |columns: &str| {
            format!("SELECT {columns} FROM {table} t WHERE {RANGE} AND {LIVE} ORDER BY t.key LIMIT $4")
        };
        let sql = match self {
            // A page ends early where its values would take too much memory.
            Self::Scan => {
                types.push(Type::INT8);
                format!(
                    "SELECT p.key, p.value, p.expires_at, clock_timestamp() FROM (SELECT q.*, \
                     sum(octet_length(q.value)) OVER (ORDER BY q.key ROWS UNBOUNDED PRECEDING) - octet_length(q.value) \
                     AS before FROM ({}) q) p WHERE p.before < $5",
                    page("t.key, t.value, t.expires_at")
                )
            }
            Self::ScanKeys => page("t.key, t.expires_at, clock_timestamp()"),
            _ => format!(
                "SELECT p.key, p.number FROM (SELECT q.key, row_number() OVER (ORDER BY q.key) AS number \
                 FROM ({}) q) p ORDER BY p.key DESC LIMIT 1",
                page("t.key")
            ),
        };
        (types, false, sql)
    }

    fn service(self, Names { table, .. }: &Names) -> (Vec<Type>, bool, String) {
        let id = format!("{}::regclass::oid", literal(table));
        match self {
            Self::Clear => (
                vec![Type::BYTEA, Type::BOOL, Type::BYTEA, Type::INT8],
                true,
                format!(
                    "WITH l AS MATERIALIZED (SELECT t.key FROM {table} t WHERE {RANGE} AND {LIVE} \
                     ORDER BY t.key LIMIT $4 FOR UPDATE), \
                     d AS (DELETE FROM {table} t USING l WHERE t.key = l.key RETURNING t.key) \
                     SELECT d.key, count(*) OVER () FROM d ORDER BY d.key DESC LIMIT 1"
                ),
            ),
            // Whoever has the lock sweeps. The time is that of the statement's beginning: an index finds it.
            Self::Sweep => (
                vec![Type::INT8],
                true,
                format!(
                    "WITH turn AS MATERIALIZED (SELECT pg_try_advisory_xact_lock({LOCK} << 32 | {id}::int8) AS mine), \
                     l AS MATERIALIZED (SELECT t.key FROM {table} t WHERE (SELECT mine FROM turn) \
                     AND t.expires_at <= now() ORDER BY t.expires_at LIMIT $1 FOR UPDATE SKIP LOCKED) \
                     DELETE FROM {table} t USING l WHERE t.key = l.key"
                ),
            ),
            _ => (vec![Type::TEXT], true, format!("SELECT pg_notify('{MESSAGES}' || {id}, $1)")),
        }
    }
}

/// Numbers as those of [`commonhold_core::Increment`], but for the longest. What a `CASE` does not come to is not worked
/// out.
fn increment(Names { table, .. }: &Names) -> String {
    let digits = "encode(t.value, 'escape')";
    format!(
        "UPDATE {table} t SET value = ({digits}::int8 + $2)::text::bytea WHERE t.key = $1 AND {LIVE} \
         AND CASE WHEN octet_length(t.value) > 19 THEN false ELSE {digits} ~ '^(0|-?[1-9][0-9]{{0,17}})$' END \
         RETURNING t.value"
    )
}

/// Rows whose keys are none of the store's, put in by plain SQL, are not seen. The length of a key is that of
/// [`commonhold_core::Key`].
const RANGE: &str =
    "t.key >= $1 AND t.key < $3 AND NOT ($2 AND t.key = $1) AND octet_length(t.key) BETWEEN 1 AND 1024";

/// With `synchronous_commit` off, what is acknowledged need not be on the disk. Where it is on, what is not there yet may
/// stay so for long: nobody waits for it.
const WRITTEN: &str = "SELECT w.position, left(pg_walfile_name(w.position), 8), clock_timestamp() FROM (SELECT \
     CASE current_setting('synchronous_commit') WHEN 'off' THEN pg_current_wal_insert_lsn() \
     ELSE pg_current_wal_flush_lsn() END AS position) w";

/// The advisory locks of this library: for migrations this number itself, for a table it and the table's id.
pub(crate) const LOCK: i64 = 0x0063_6f6d;

/// The channels on which changes and messages are told are called this and the table's id.
pub(crate) const CHANGES: &str = "commonhold_changes_";
/// See [`CHANGES`].
pub(crate) const MESSAGES: &str = "commonhold_messages_";

fn health(table: &str) -> String {
    let id = format!("{}::regclass", literal(table));
    format!(
        "SELECT current_setting('server_version'), clock_timestamp(), pg_is_in_recovery(), \
         current_setting('fsync') = 'on', current_setting('synchronous_commit') <> 'off', \
         (SELECT relpersistence = 'u' FROM pg_class WHERE oid = {id}), \
         (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), \
         current_setting('max_connections')::int8 - current_setting('superuser_reserved_connections')::int8, \
         coalesce((SELECT n_live_tup FROM pg_stat_all_tables WHERE relid = {id}), 0), \
         coalesce((SELECT n_dead_tup FROM pg_stat_all_tables WHERE relid = {id}), 0), \
         (SELECT count(*) FROM pg_stat_replication), \
         (SELECT max(extract(epoch FROM replay_lag))::float8 FROM pg_stat_replication), \
         current_setting('transaction_read_only') = 'on'"
    )
}
