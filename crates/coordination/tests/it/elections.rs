//! Elections.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use commonhold::{
    ErrorKind, MemoryBackend, Store,
    layers::{Fault, FaultPlan, Operation},
};
use commonhold_coordination::{Election, Leader};
use commonhold_testkit::eventually;
use futures_util::{Stream, StreamExt as _};

use crate::common::{PATIENCE, Place};

const TTL: Duration = Duration::from_secs(30);

async fn next(
    leaders: &mut (impl Stream<Item = commonhold::Result<Option<Leader>>> + Unpin),
) -> Option<Vec<u8>> {
    let next = tokio::time::timeout(PATIENCE, leaders.next()).await.expect("a change of leader is told");
    next.unwrap().unwrap().map(|leader| leader.value)
}

async fn check(place: Place) {
    let store = place.open().await;
    let (one, other) = (Election::new(store.clone(), "e").unwrap(), Election::new(store, "e").unwrap());
    let mut leaders = Box::pin(other.observe());
    assert_eq!(next(&mut leaders).await, None);
    let lead = one.campaign("one", TTL).await.unwrap();
    assert!(lead.is_leader());
    assert_eq!(next(&mut leaders).await.unwrap(), b"one");
    assert!(other.campaign_for("other", TTL, Duration::from_millis(10)).await.unwrap().is_none());
    assert!(lead.proclaim(b"one \0\xff%= now").await.unwrap());
    assert_eq!(next(&mut leaders).await.unwrap(), b"one \0\xff%= now");
    let campaign = tokio::spawn({
        let other = other.clone();
        async move { other.campaign("", TTL).await }
    });
    eventually(PATIENCE, "it campaigns", async || one.show().await.unwrap().waiting == 1).await;
    let (token, lost) = (lead.token(), lead.lost());
    assert!(lead.resign().await.unwrap());
    assert!(lost.is_cancelled());
    let lead = campaign.await.unwrap().unwrap();
    assert!(lead.token() > token);
    eventually(PATIENCE, "the new leader is seen", async || {
        one.leader().await.unwrap().is_some_and(|leader| leader.value.is_empty())
    })
    .await;
    drop(lead);
    while next(&mut leaders).await.is_some() {}
}

#[tokio::test]
async fn one_leads_and_the_others_see_who_in_memory() {
    check(Place::memory()).await;
}

#[tokio::test]
async fn one_leads_and_the_others_see_who_in_redis() {
    check(Place::redis()).await;
}

#[tokio::test]
async fn one_leads_and_the_others_see_who_in_a_cluster() {
    check(Place::cluster()).await;
}

#[tokio::test]
async fn one_leads_and_the_others_see_who_in_postgres() {
    check(Place::postgres()).await;
}

#[tokio::test]
async fn one_leads_and_the_others_see_who_in_memcached() {
    check(Place::memcached()).await;
}

#[tokio::test]
async fn a_lead_that_ends_by_itself_is_told() {
    let store = Place::memory().open().await;
    let plan = FaultPlan::new();
    let one = Election::new(store.clone().layer(Fault::new(&plan)), "e").unwrap();
    let other = Election::new(store, "e").unwrap();
    let mut leaders = Box::pin(other.observe());
    let lead = one.campaign("one", Duration::from_millis(200)).await.unwrap();
    for _ in 0..1_000 {
        plan.refuse(Operation::Transact);
    }
    while next(&mut leaders).await.is_none() {}
    assert_eq!(next(&mut leaders).await, None);
    assert!(lead.lost().is_cancelled(), "the leader knows before the others");
}

#[tokio::test(flavor = "multi_thread")]
async fn work_is_done_by_one_at_a_time_and_goes_on_with_the_next_leader() {
    let store = Place::redis().open().await;
    let (working, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut tasks = tokio::task::JoinSet::new();
    for instance in 0..5 {
        let election = Election::new(store.clone(), "e").unwrap();
        let (working, done) = (Arc::clone(&working), Arc::clone(&done));
        tasks.spawn(async move {
            let work = |_| {
                let (working, done) = (Arc::clone(&working), Arc::clone(&done));
                async move {
                    assert_eq!(working.fetch_add(1, SeqCst), 0, "two lead at once");
                    tokio::task::yield_now().await;
                    working.fetch_sub(1, SeqCst);
                    done.fetch_add(1, SeqCst);
                }
            };
            election.run_while_leader(format!("{instance}"), TTL, work).await.unwrap();
        });
    }
    tasks.join_all().await;
    assert_eq!(done.load(SeqCst), 5);
}

#[tokio::test]
async fn a_leader_that_loses_the_lead_stops_its_work_and_campaigns_again() {
    let store = Store::new(MemoryBackend::new());
    let election = Election::new(store.clone(), "e").unwrap();
    let runs = AtomicUsize::new(0);
    let work = |_| async {
        if runs.fetch_add(1, SeqCst) == 0 {
            store.delete("election:e").await.unwrap();
            std::future::pending::<()>().await;
        }
    };
    election.run_while_leader("one", Duration::from_millis(60), work).await.unwrap();
    assert_eq!(runs.load(SeqCst), 2);
}

#[tokio::test]
async fn a_value_that_is_too_long_is_refused() {
    let election = Election::new(Store::new(MemoryBackend::new()), "e").unwrap();
    let error = election.campaign("x".repeat(1025), TTL).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}
