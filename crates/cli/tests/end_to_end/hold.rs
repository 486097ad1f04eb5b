//! `lock` and `elect`, between processes, over a real Redis.

use std::time::Duration;

use commonhold::coordination::Locks;
use commonhold_testkit::servers::{Redis, shared::redis_url, unique};

use crate::sandbox::{Running, Sandbox};

fn store() -> String {
    format!("{}?prefix={}:", redis_url(), unique("cli"))
}

/// Starts a command under a lock, and waits until it runs; what it traps is the first thing that it says.
fn start(sandbox: &Sandbox, store: &str, command: &str, name: &str, script: &str) -> Running {
    let (trap, script) = match script.split_once("; ") {
        Some((trap, rest)) if trap.starts_with("trap ") => (trap, rest),
        _ => (":", script),
    };
    let script = format!("{trap}; echo running >&2; {script}");
    let mut running =
        sandbox.start(["--store", store, command, name, "--ttl", "2s", "--", "sh", "-c", &script]);
    running.wait_for_note("running");
    running
}

#[test]
fn a_command_runs_under_a_lock_and_its_exit_code_is_that_of_lock() {
    let (sandbox, store) = (Sandbox::new(), store());
    let script = "echo $COMMONHOLD_NAME $COMMONHOLD_FENCE; exit 7";
    let outcome = sandbox.run(["--store", &store, "lock", "job", "--", "sh", "-c", script]);
    assert_eq!(outcome.code, Some(7), "{outcome:?}");
    let printed = String::from_utf8(outcome.stdout).unwrap();
    let first: u64 = printed.trim().strip_prefix("job ").unwrap().parse().unwrap();
    let outcome = sandbox.run(["--store", &store, "lock", "job", "--", "sh", "-c", script]);
    let printed = String::from_utf8(outcome.stdout).unwrap();
    assert!(printed.trim().strip_prefix("job ").unwrap().parse::<u64>().unwrap() > first);
    assert_eq!(sandbox.run(["--store", &store, "lock", "job", "--", "no such command"]).code, Some(127));
    assert_eq!(sandbox.run(["--store", &store, "lock", "job", "--", "/"]).code, Some(126));
    assert_eq!(
        sandbox.run(["--store", &store, "lock", "job", "--", "sh", "-c", "kill -9 $$"]).code,
        Some(137)
    );
    assert_eq!(sandbox.run(["--store", &store, "lock", "--", "true"]).code, Some(2));
    assert_eq!(sandbox.run(["--store", &store, "elect", "--", "true"]).code, Some(2));
    assert_eq!(sandbox.run(["--store", &store, "lock", "job", "--"]).code, Some(2), "of an empty variable");
    assert_eq!(sandbox.run(["--store", &store, "elect", "job", "--"]).code, Some(2));
    assert_eq!(sandbox.run(["--store", &store, "lock", "job", "--ttl", "1ms", "--", "true"]).code, Some(2));
    assert_eq!(sandbox.ok(&["--store", &store, "lock"]).lines().count(), 1, "nobody holds anything");
}

#[test]
fn who_does_not_get_the_lock_ends_with_1_and_sees_who_has_it() {
    let (sandbox, store) = (Sandbox::new(), store());
    let mut holder = start(&sandbox, &store, "lock", "job", "read line");
    let outcome = sandbox.run(["--store", &store, "lock", "job", "--wait", "0s", "--", "echo", "no"]);
    assert_eq!((outcome.code, &outcome.stdout[..]), (Some(1), &b""[..]), "{outcome:?}");
    assert_eq!(
        sandbox.run(["--store", &store, "lock", "job", "--wait", "50ms", "--", "echo", "no"]).code,
        Some(1)
    );
    let [shown] = &sandbox.json(&["--store", &store, "lock"])[..] else { panic!() };
    assert_eq!(shown["name"], "job");
    let label = shown["holders"][0]["holder"].as_str().unwrap();
    assert!(label.starts_with(&format!("{}@", holder.child().id())), "{label}");
    let waiting = sandbox.start(["--store", &store, "lock", "job", "--wait", "100s", "--", "echo", "had"]);
    drop(holder.child().stdin.take());
    assert_eq!(holder.end().code, Some(1), "`read` finds the end of its input");
    let outcome = waiting.end();
    assert_eq!((outcome.code, &outcome.stdout[..]), (Some(0), &b"had\n"[..]), "{outcome:?}");
}

#[test]
fn semaphores_and_read_write_locks_are_shown_beside_locks() {
    let (sandbox, store) = (Sandbox::new(), store());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let ttl = Duration::from_secs(1_000);
    let _held = runtime.block_on(async {
        let locks = Locks::new(commonhold::open(&store).await.unwrap()).unwrap();
        (
            locks.semaphore("exports", 3).unwrap().try_acquire(2, ttl).await.unwrap().unwrap(),
            locks.rw_lock("catalogue").unwrap().read(ttl, ttl).await.unwrap().unwrap(),
            locks.rw_lock("prices").unwrap().write(ttl, ttl).await.unwrap().unwrap(),
            locks.try_acquire("job", ttl).await.unwrap().unwrap(),
        )
    });
    for of_somebody_else in ["semaphore:light", "semaphore:"] {
        sandbox.ok(&["--store", &store, "put", of_somebody_else, "red"]);
    }
    let table = sandbox.ok(&["--store", &store, "lock"]);
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    let held: Vec<_> = rows.iter().map(|row| (row[1], row[0], row[3])).collect();
    assert_eq!(
        held,
        [
            ("KIND", "NAME", "PERMITS"),
            ("lock", "job", "1"),
            ("semaphore", "exports", "2"),
            ("rwlock", "catalogue", "1"),
            ("rwlock", "prices", "all"),
        ],
        "{table}"
    );
    let shown = sandbox.json(&["--store", &store, "lock"]);
    assert_eq!((&shown[1]["kind"], &shown[1]["holders"][0]["weight"]), (&"semaphore".into(), &2.into()));
}

#[test]
fn so_many_commands_run_at_once_as_may() {
    let (sandbox, store) = (Sandbox::new(), store());
    let lock = |arguments: &[&str]| {
        let all = [&["--store", &store, "lock", "export", "--at-once", "2"], arguments].concat();
        sandbox.start(all)
    };
    let mut holders = [(); 2].map(|()| lock(&["--", "sh", "-c", "echo running >&2; read line"]));
    holders.iter_mut().for_each(|holder| holder.wait_for_note("running"));
    let outcome = lock(&["--wait", "0s", "--", "echo", "no"]).end();
    assert_eq!((outcome.code, &outcome.stdout[..]), (Some(1), &b""[..]), "{outcome:?}");
    let shown = sandbox.ok(&["--store", &store, "lock", "export", "--at-once", "2"]);
    assert_eq!(shown.lines().filter(|line| line.contains("semaphore")).count(), 2, "{shown}");
    let waiting = lock(&["--wait", "100s", "--", "echo", "had"]);
    drop(holders[1].child().stdin.take());
    let outcome = waiting.end();
    assert_eq!((outcome.code, &outcome.stdout[..]), (Some(0), &b"had\n"[..]), "{outcome:?}");
    assert_eq!(sandbox.run(["--store", &store, "lock", "export", "--", "true"]).code, Some(0), "the lock");
    let none = sandbox.run(["--store", &store, "lock", "export", "--at-once", "0", "--", "true"]);
    assert_eq!(none.code, Some(2), "{none:?}");
}

#[test]
fn a_lock_comes_free_when_its_holder_is_killed() {
    let (sandbox, store) = (Sandbox::new(), store());
    let holder = start(&sandbox, &store, "lock", "job", "read line");
    holder.kill();
    let outcome = sandbox.run(["--store", &store, "lock", "job", "--wait", "100s", "--", "echo", "had"]);
    assert_eq!((outcome.code, &outcome.stdout[..]), (Some(0), &b"had\n"[..]), "{outcome:?}");
}

#[test]
fn a_command_is_ended_when_its_lock_is_lost_because_the_holder_was_stopped() {
    let (sandbox, store) = (Sandbox::new(), store());
    let script = "trap 'echo ended && exit 1' TERM; while :; do sleep 0.05; done";
    let mut holder = start(&sandbox, &store, "lock", "job", script);
    holder.signal("STOP");
    let outcome = sandbox.run(["--store", &store, "lock", "job", "--wait", "100s", "--", "echo", "had"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    holder.signal("CONT");
    let outcome = holder.end();
    assert_eq!((outcome.code, &outcome.stdout[..]), (Some(3), &b"ended\n"[..]), "{outcome:?}");
}

#[test]
fn a_command_and_what_it_started_are_ended_when_its_lock_is_lost_because_the_store_is_away() {
    let (sandbox, redis) = (Sandbox::new(), Redis::start());
    // They take no heed of SIGTERM, and so are killed. Whoever is left would keep the output open.
    let holder = start(&sandbox, &redis.url(), "lock", "job", "trap '' TERM; sleep 1000 | sleep 1000");
    redis.kill();
    let outcome = holder.end();
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
}

#[test]
fn what_a_command_started_is_killed_with_it_though_the_command_itself_ended_in_time() {
    let (sandbox, redis) = (Sandbox::new(), Redis::start());
    // Whoever is left would keep the output open.
    let script = "(trap '' TERM; exec sleep 1000) & wait";
    let holder = start(&sandbox, &redis.url(), "lock", "job", script);
    redis.kill();
    assert_eq!(holder.end().code, Some(3));
}

#[test]
fn signals_that_ask_to_end_reach_the_command_and_the_lock_is_released_then() {
    let (sandbox, store) = (Sandbox::new(), store());
    for (signal, code) in [("HUP", 5), ("TERM", 6), ("QUIT", 7)] {
        let script = format!("trap 'exit {code}' {signal}; while :; do sleep 0.05; done");
        let mut holder = start(&sandbox, &store, "lock", "job", &script);
        holder.signal(signal);
        assert_eq!(holder.end().code, Some(code), "{signal}");
        assert_eq!(sandbox.ok(&["--store", &store, "lock"]).lines().count(), 1, "{signal}: it is held still");
    }
}

#[test]
fn who_waits_for_a_lead_ends_when_asked_to_also_after_it_had_led() {
    let (sandbox, redis) = (Sandbox::new(), Redis::start());
    let mut leader = start(&sandbox, &redis.url(), "elect", "e", "while :; do sleep 0.05; done");
    redis.kill();
    leader.wait_for_note("campaigning again");
    leader.signal("TERM");
    assert_eq!(leader.end().code, Some(143));
}

#[test]
fn the_exit_code_of_a_command_is_told_also_when_the_store_is_away_at_its_end() {
    let (sandbox, redis) = (Sandbox::new(), Redis::start());
    for code in [0, 7] {
        let url = format!("{}?retries=0", redis.url());
        let mut holder = start(&sandbox, &url, "lock", "job", &format!("read line; exit {code}"));
        redis.kill();
        drop(holder.child().stdin.take());
        let outcome = holder.end();
        assert_eq!(outcome.code, Some(code), "{outcome:?}");
        assert!(outcome.stderr.contains("comes free after its --ttl"), "{outcome:?}");
        redis.start_again();
        redis.cli(&["FLUSHALL"]);
    }
}

#[test]
fn ctrl_c_while_waiting_leaves_the_line_at_once_and_while_running_waits_for_the_command() {
    let (sandbox, store) = (Sandbox::new(), store());
    let mut holder =
        start(&sandbox, &store, "lock", "job", "trap 'exit 5' TERM; while :; do sleep 0.05; done");
    let mut waiting = sandbox.start(["--store", &store, "lock", "job", "--wait", "100s", "--", "echo", "no"]);
    let line = || sandbox.json(&["--store", &store, "lock", "job"])[0]["waiting"].as_u64().unwrap();
    while line() == 0 {}
    waiting.interrupt();
    assert_eq!(waiting.end().code, Some(130));
    assert_eq!(line(), 0);
    holder.signal("TERM");
    assert_eq!(holder.end().code, Some(5), "the command was told, and the lock is free");
    let [shown] = &sandbox.json(&["--store", &store, "lock", "job"])[..] else { panic!() };
    assert_eq!(shown["holders"].as_array().unwrap().len(), 0);
}

#[test]
fn one_process_leads_and_the_next_takes_over() {
    let (sandbox, store) = (Sandbox::new(), store());
    let first = start(&sandbox, &store, "elect", "e", "read line");
    let second = sandbox.start(["--store", &store, "elect", "e", "--value", "second", "--", "echo", "leads"]);
    let waiting = || sandbox.json(&["--store", &store, "elect", "e"])[0]["waiting"].as_u64().unwrap();
    while waiting() == 0 {}
    let [shown] = &sandbox.json(&["--store", &store, "elect"])[..] else { panic!("one election") };
    assert_eq!((&shown["name"], &shown["waiting"]), (&"e".into(), &1.into()), "{shown}");
    first.kill();
    let outcome = second.end();
    assert_eq!((outcome.code, &outcome.stdout[..]), (Some(0), &b"leads\n"[..]), "{outcome:?}");
    assert!(sandbox.json(&["--store", &store, "elect"]).is_empty(), "nobody leads any more");
}

#[test]
fn permits_of_a_limit_are_taken_by_several_processes_until_there_are_none() {
    let (sandbox, store) = (Sandbox::new(), store());
    let take = |more: &[&str]| {
        sandbox.run([&["--store", &store, "limit", "take", "l", "--rate", "2/h"], more].concat())
    };
    assert_eq!(take(&[]).code, Some(0));
    let [shown] = &sandbox.json(&["--store", &store, "limit", "show", "l", "--rate", "2/h"])[..] else {
        panic!()
    };
    assert_eq!(shown["remaining"], 1);
    assert_eq!(take(&["--permits", "2"]).code, Some(1));
    assert_eq!(take(&["--permits", "3"]).code, Some(2), "there are never so many");
    assert_eq!(take(&["--wait", "50ms"]).code, Some(0));
    let outcome = take(&["--wait", "50ms"]);
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.starts_with("over the limit \"l\": again in "), "{outcome:?}");
    sandbox.ok(&["--store", &store, "limit", "reset", "l", "--rate", "2/h"]);
    assert_eq!(take(&["--permits", "2"]).code, Some(0));
    assert_eq!(sandbox.run(["limit", "take", "l", "--rate", "2"]).code, Some(2));
}

#[test]
fn commands_run_while_they_hold_permits_of_a_concurrency_limit_and_it_is_shown_who_does() {
    let (sandbox, store) = (Sandbox::new(), store());
    let take = |args: &[&str]| {
        let take = ["--store", &store, "limit", "take", "l", "--at-once", "3", "--ttl", "2s"];
        sandbox.start([&take, args].concat())
    };
    let show = || sandbox.json(&["--store", &store, "limit", "show", "l", "--at-once", "3"]).remove(0);
    assert_eq!(show()["free"], 3);
    let mut holder =
        take(&["--permits", "2", "--", "sh", "-c", "echo $COMMONHOLD_NAME running >&2; read line; exit 7"]);
    holder.wait_for_note("l running");
    let shown = show();
    let [one] = &shown["holders"].as_array().unwrap()[..] else { panic!("{shown}") };
    assert_eq!((&shown["free"], &one["held"], &one["wanted"]), (&1.into(), &2.into(), &2.into()), "{shown}");
    assert!(one["holder"].as_str().unwrap().starts_with(&format!("{}@", holder.child().id())), "{shown}");
    let text = sandbox.ok(&["--store", &store, "limit", "show", "l", "--at-once", "3"]);
    assert!(text.starts_with("1 of 3 free\nHOLDER"), "{text}");

    let refused = take(&["--permits", "2", "--", "echo", "no"]).end();
    assert_eq!((refused.code, &refused.stdout[..]), (Some(1), &b""[..]), "{refused:?}");
    assert!(refused.stderr.starts_with("over the limit \"l\""), "{refused:?}");
    let beside = take(&["--", "echo", "beside"]).end();
    assert_eq!((beside.code, &beside.stdout[..]), (Some(0), &b"beside\n"[..]), "{beside:?}");
    let waits = take(&["--permits", "3", "--wait", "30s", "--", "echo", "had them"]);
    while show()["holders"].as_array().unwrap().len() < 2 {}
    drop(holder.child().stdin.take());
    assert_eq!(holder.end().code, Some(7));
    let had = waits.end();
    assert_eq!((had.code, &had.stdout[..]), (Some(0), &b"had them\n"[..]), "{had:?}");
    // What was held is given back before the command line ends, also by who was stopped or found no command.
    assert_eq!(show()["free"], 3);
    assert_eq!(take(&["--", "no such command"]).end().code, Some(127));
    assert_eq!(show()["holders"].as_array().unwrap().len(), 0);
    for wrong in [
        &["take", "l", "--at-once", "3"][..],
        &["take", "l", "--at-once", "3", "--"],
        &["take", "l", "--at-once", "3", "--permits", "4", "--", "true"],
        &["take", "l", "--at-once", "0", "--", "true"],
        &["take", "l", "--at-once", "3", "--rate", "1/s", "--", "true"],
        &["take", "l", "--rate", "1/s", "--", "true"],
        &["take", "l", "--rate", "1/s", "--"],
        &["take", "l", "--rate", "1/s", "--ttl", "5s"],
        &["take", "l", "--", "true"],
        &["show", "l"],
        &["reset", "l", "--at-once", "3"],
    ] {
        let outcome = sandbox.run([&["--store", &store, "limit"], wrong].concat());
        assert_eq!(outcome.code, Some(2), "{wrong:?}: {outcome:?}");
    }
}

#[test]
fn a_command_whose_permits_are_lost_is_ended_and_a_killed_holder_holds_nobody_up_for_long() {
    let (sandbox, redis) = (Sandbox::new(), Redis::start());
    let store = format!("{}?retries=0&read_timeout=300ms&write_timeout=300ms", redis.url());
    let take = |args: &[&str]| {
        let take = ["--store", &store, "limit", "take", "l", "--at-once", "1"];
        let ttl = if args.contains(&"--ttl") { &[][..] } else { &["--ttl", "1s"] };
        sandbox.start([&take, ttl, args].concat())
    };
    let mut killed = take(&["--", "sh", "-c", "echo running >&2; read line"]);
    killed.wait_for_note("running");
    killed.kill();
    let mut holder = take(&["--wait", "30s", "--", "sh", "-c", "echo running >&2; sleep 60"]);
    holder.wait_for_note("running");
    redis.kill();
    let lost = holder.end();
    assert_eq!(lost.code, Some(3), "{lost:?}");
    assert!(lost.stderr.contains("the permit of l was lost, and the command ended"), "{lost:?}");
    for wait in ["0s", "1s"] {
        let outcome = take(&["--wait", wait, "--", "echo", "no"]).end();
        assert_eq!((outcome.code, &outcome.stdout[..]), (Some(3), &b""[..]), "{outcome:?}");
    }
    redis.start_again();
    let mut holder = take(&["--ttl", "1h", "--", "sh", "-c", "echo running >&2; read line; true"]);
    holder.wait_for_note("running");
    let mut waits = take(&["--wait", "1m", "--", "echo", "had it"]);
    let show = || sandbox.json(&["--store", &store, "limit", "show", "l", "--at-once", "1"]).remove(0);
    while show()["holders"].as_array().unwrap().len() < 2 {}
    redis.kill();
    assert_eq!(sandbox.run(["--store", &store, "limit", "show", "l", "--at-once", "1"]).code, Some(3));
    redis.start_again();
    drop(holder.child().stdin.take());
    assert_eq!(holder.end().code, Some(0));
    assert!(waits.child().try_wait().unwrap().is_none_or(|status| status.success()));
    let had = waits.end();
    assert_eq!((had.code, &had.stdout[..]), (Some(0), &b"had it\n"[..]), "{had:?}");
}

#[test]
fn a_store_that_cannot_answer_is_unavailable_and_not_a_limit_that_is_reached() {
    let (sandbox, redis) = (Sandbox::new(), Redis::start());
    let store = format!("{}?retries=0", redis.url());
    let take =
        |wait: &str| sandbox.run(["--store", &store, "limit", "take", "l", "--rate", "2/h", "--wait", wait]);
    assert_eq!(take("0s").code, Some(0));
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    for wait in ["0s", "1s"] {
        let outcome = take(wait);
        assert_eq!(outcome.code, Some(3), "{outcome:?}");
        assert!(outcome.stdout.is_empty() && !outcome.stderr.contains("over the limit"), "{outcome:?}");
    }
    redis.kill();
    assert_eq!(take("0s").code, Some(3));
}

#[test]
fn breakers_are_set_by_hand_and_counters_count_once_for_each_id() {
    let (sandbox, store) = (Sandbox::new(), store());
    let ok = |args: &[&str]| sandbox.ok(&[&["--store", &store], args].concat());
    ok(&["breaker", "isolate", "b"]);
    let outcome = sandbox.run(["--store", &store, "breaker", "open", "b"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.starts_with("the breaker \"b\" stays isolated"), "{outcome:?}");
    assert_eq!(ok(&["breaker", "show"]), "b: isolated\n");
    ok(&["breaker", "close", "b"]);
    ok(&["breaker", "open", "other"]);
    // For as long as may be: instances cut that to what they are set to.
    let state = ok(&["get", "breaker:other"]);
    let number = |field| state.split(' ').nth(field).unwrap().parse::<u64>().unwrap();
    assert_eq!(number(2) - number(0), 24 * 60 * 60 * 1_000_000);
    ok(&["put", "breaker:of somebody else", "red"]);
    assert_eq!(ok(&["breaker", "show"]), "b: closed\nother: open, opened 1 time since it was closed\n");
    ok(&["breaker", "reset", "other"]);
    assert_eq!(ok(&["breaker", "show", "other"]), "other: closed\n");

    assert_eq!(ok(&["counter", "add", "c", "--by", "-3", "--id", "i"]), "-3\n");
    assert_eq!(ok(&["counter", "add", "c", "--by", "-3", "--id", "i"]), "-3\n");
    assert_eq!(ok(&["counter", "add", "c"]), "-2\n");
    assert_eq!(ok(&["counter", "show", "c"]), "-2\n");
    ok(&["counter", "reset", "c"]);
    assert_eq!(ok(&["counter", "show", "c"]), "0\n");
    ok(&["put", "text", "no number"]);
    assert_eq!(sandbox.run(["--store", &store, "counter", "reset", "text"]).code, Some(2));
    assert_eq!(ok(&["get", "text"]), "no number");
}
