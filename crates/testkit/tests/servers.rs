//! The servers start, are paused, killed and started again, and end with their owner.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "test code"
)]

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use commonhold_testkit::servers::{Memcached, Postgres, Redis, shared, unique};

fn ends(pid: u32) -> bool {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") {
            return true;
        }
        thread::sleep(Duration::from_millis(10));
    }
    false
}

fn disappears(directory: &str) -> bool {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Path::new(directory).exists() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}

/// This test binary again, as a process that can be killed: it runs `owns_servers` and prints what it owns.
fn owner(paused: bool) -> (Child, Vec<(u32, String)>) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "owns_servers", "--nocapture", "--ignored"])
        .env("PAUSED", if paused { "yes" } else { "no" })
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let owned = lines.filter_map(|line| {
        let (pid, directory) = line.rsplit_once("owns ")?.1.split_once(' ')?;
        Some((pid.parse().unwrap(), directory.to_owned()))
    });
    let owned = owned.take(3).collect();
    (child, owned)
}

#[test]
#[ignore = "a process for the tests below to kill"]
fn owns_servers() {
    let (redis, memcached, postgres) = (Redis::start(), Memcached::start(), Postgres::start());
    let paused = env::var("PAUSED").unwrap() == "yes";
    if paused {
        redis.pause();
        memcached.pause();
        postgres.pause();
    }
    println!("\nowns {} {}", redis.pid().unwrap(), redis.directory().display());
    println!("owns {} {}", memcached.pid().unwrap(), memcached.directory().display());
    println!("owns {} {}", postgres.pid().unwrap(), postgres.directory().display());
    // Ends when it is killed, or when whoever began it is gone.
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn a_killed_owner_takes_its_servers_along() {
    for paused in [false, true] {
        let (mut child, owned) = owner(paused);
        assert_eq!(owned.len(), 3);
        for (pid, directory) in &owned {
            assert!(Path::new(&format!("/proc/{pid}")).exists());
            assert!(Path::new(directory).exists());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for (pid, directory) in &owned {
            assert!(ends(*pid), "the server {pid} still runs, paused: {paused}");
            assert!(disappears(directory), "{directory} is still there, paused: {paused}");
        }
    }
}

#[test]
fn a_panicking_owner_takes_its_servers_along() {
    let owner = thread::spawn(|| {
        let redis = Redis::start();
        let owned = (redis.pid().unwrap(), redis.directory().to_owned());
        std::panic::panic_any(owned);
    });
    let panic = owner.join().unwrap_err();
    let (pid, directory) = panic.downcast_ref::<(u32, std::path::PathBuf)>().unwrap();
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(!directory.exists());
}

#[test]
fn a_server_outlives_the_thread_that_started_it() {
    let redis = thread::spawn(Redis::start).join().unwrap();
    assert_eq!(redis.cli(&["PING"]), "PONG");
}

#[test]
fn redis_is_killed_and_started_again_on_its_port() {
    let redis = Redis::start();
    let port = redis.port();
    redis.cli(&["SET", "key", "value"]);
    redis.kill();
    assert_eq!(redis.pid(), None);
    redis.start_again();
    assert_eq!(redis.port(), port);
    assert_eq!(redis.cli(&["GET", "key"]), "");
}

#[test]
fn redis_keeps_what_it_acknowledged_if_asked_to() {
    let redis = Redis::builder().append_only().start();
    redis.cli(&["SET", "key", "value"]);
    redis.kill();
    redis.start_again();
    assert_eq!(redis.cli(&["GET", "key"]), "value");
}

#[test]
fn redis_lets_in_a_user_with_the_password_only() {
    let redis = Redis::builder().user("alice").start();
    assert_eq!(redis.cli(&["ACL", "WHOAMI"]), "alice");
    assert!(redis.url().starts_with("redis://alice:"));
}

#[test]
fn a_full_redis_refuses_writes() {
    let redis = Redis::builder().max_memory(1).start();
    let refused = redis.try_cli(&["SET", "key", "value"]).unwrap_err();
    assert!(refused.contains("OOM"), "{refused}");
}

#[test]
fn a_paused_server_answers_when_it_goes_on() {
    let redis = Redis::start();
    redis.pause();
    let pid = redis.pid().unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    assert!(stat.contains(") T "), "{stat}");
    redis.resume();
    assert_eq!(redis.cli(&["PING"]), "PONG");
}

#[test]
fn postgres_keeps_what_it_acknowledged_when_it_is_killed() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE kept (id int); INSERT INTO kept VALUES (1), (2)");
    postgres.kill();
    postgres.start_again();
    assert_eq!(postgres.sql("SELECT id FROM kept ORDER BY id"), "1\n2");
    postgres.restart();
    assert_eq!(postgres.sql("SELECT count(*) FROM kept"), "2");
}

#[test]
fn postgres_has_the_options_it_was_given() {
    let postgres = Postgres::builder().config("max_connections = 7").start();
    assert_eq!(postgres.sql("SHOW max_connections"), "7");
}

#[test]
fn a_killed_memcached_forgets_everything() {
    use std::io::{Read, Write};
    let memcached = Memcached::start();
    let ask = |request: &[u8], reply: &[u8]| {
        let mut connection = std::net::TcpStream::connect(memcached.address()).unwrap();
        connection.write_all(request).unwrap();
        let mut read = vec![0; reply.len()];
        connection.read_exact(&mut read).unwrap();
        assert_eq!(read, reply);
    };
    ask(b"ms key 5\r\nvalue\r\n", b"HD\r\n");
    ask(b"mg key v\r\n", b"VA 5\r\nvalue\r\n");
    memcached.kill();
    memcached.start_again();
    ask(b"mg key v\r\n", b"EN\r\n");
}

#[test]
fn shared_servers_are_started_once_for_the_process() {
    assert_eq!(shared::redis_url(), shared::redis_url());
    assert_eq!(shared::memcached_url().split(',').count(), 2);
    assert!(shared::postgres_url().starts_with("postgres://"));
    assert_ne!(unique("name"), unique("name"));
}
