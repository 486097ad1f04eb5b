//! The kit can fail: every case of it finds at least one flaw that is built in on purpose.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

#[path = "flaws/broken.rs"]
mod broken;
#[path = "flaws/flaw.rs"]
mod flaw;
#[path = "flaws/transaction.rs"]
mod transaction;

use std::{collections::BTreeSet, panic, sync::Arc};

use commonhold_core::{ManualClock, MemoryBackend, Timestamp};
use commonhold_testkit::{MAX_VALUE_BYTES, Subject, assert_complete, conformance};

use self::{broken::Broken, flaw::Flaw};

async fn subject(flaw: Flaw) -> Subject {
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)));
    let limit = if flaw == Flaw::ValuesWithoutLimit { 2 * MAX_VALUE_BYTES } else { MAX_VALUE_BYTES };
    let memory = MemoryBackend::builder().max_value_bytes(limit).clock(clock.clone()).build();
    Subject::new(Arc::new(Broken::new(Arc::new(memory), flaw))).with_clock(clock)
}

// What is broken below is broken by the flaw alone.
conformance!(without_a_flaw, 152, || subject(Flaw::None));

macro_rules! found {
    ($($name:ident, $flaw:ident => $($case:ident),+;)*) => {
        mod finds {
            use super::*;

            $(#[test]
            fn $name() {
                $(assert_fails(stringify!($case), Flaw::$flaw);)+
            })*
        }

        const FOUND: &[&str] = &[$($(stringify!($case)),+),*];
    };
}

fn assert_fails(case: &'static str, flaw: Flaw) {
    let outcome = panic::catch_unwind(|| commonhold_testkit::run(case, move || subject(flaw)));
    assert!(outcome.is_err(), "{case} does not find the flaw {flaw:?}");
}

found! {
    empty_value_is_missing, EmptyValueIsMissing =>
        a_later_put_replaces_the_earlier_one, replies_reach_the_caller_whatever_the_bytes,
        a_transaction_sees_its_own_writes,
        an_increment_of_what_is_no_integer_is_refused_and_changes_nothing;
    text_values, TextValues =>
        every_byte_may_stand_in_a_key, every_byte_may_stand_in_a_value, a_scan_returns_values,
        get_and_delete_hands_over_the_value;
    text_keys, TextKeys => the_empty_prefix_matches_every_key;
    keys_without_case, KeysWithoutCase =>
        keys_that_begin_alike_are_different_keys, patterns_in_a_prefix_are_plain_bytes;
    keys_cut_at_250_bytes, KeysCutAt250Bytes =>
        the_longest_key_is_accepted_and_compared_to_its_last_byte, a_prefix_matches_the_key_that_it_is;
    values_without_limit, ValuesWithoutLimit =>
        a_value_over_the_limit_is_refused_and_changes_nothing, an_invalid_write_stops_the_whole_batch,
        an_invalid_write_in_a_transaction_is_refused_and_the_rest_commits;
    first_write_wins, FirstWriteWins =>
        put_with_a_ttl_replaces_an_earlier_one, a_task_reads_what_it_wrote,
        an_increment_counts_in_decimal_text, the_store_carries_typed_values;
    stale_reads, StaleReads =>
        a_value_that_was_put_is_read_back, the_longest_value_is_accepted,
        a_new_entry_inherits_no_ttl_from_a_deleted_one, a_transition_sees_the_state_and_replaces_it,
        a_transition_sees_what_was_written_by_every_other_way;
    torn_reads, TornReads => a_value_is_never_seen_half_written;
    condition_then_write, ConditionThenWrite =>
        of_racing_set_if_absent_one_wins, of_racing_set_if_absent_over_an_expired_entry_one_wins,
        a_counter_by_compare_and_swap_is_exact;
    conditions_ignored, ConditionsIgnored =>
        put_if_absent_writes_only_once, put_if_present_writes_only_over_an_entry,
        an_unmet_condition_leaves_the_time_to_live;
    equals_compares_digest_of_start, EqualsComparesDigestOfStart =>
        compare_and_swap_swaps_only_the_expected_value,
        compare_and_swap_compares_long_values_to_the_last_byte;
    swap_to_same_fails, SwapToSameFails =>
        an_empty_value_is_a_value, compare_and_swap_to_the_same_value_succeeds;
    delete_always_yes, DeleteAlwaysYes =>
        delete_says_whether_something_was_there, the_store_says_which_conditions_held;
    ttl_lost, TtlLost =>
        put_if_absent_succeeds_over_an_expired_entry, the_time_left_is_told_and_shrinks,
        a_transition_over_an_expired_entry_begins_anew,
        an_increment_over_an_expired_counter_begins_at_zero;
    ttl_kept_by_plain_put, TtlKeptByPlainPut =>
        a_condition_and_a_time_to_live_go_together, put_without_a_ttl_removes_an_earlier_one;
    ttl_of_zero_is_for_ever, TtlOfZeroIsForEver =>
        a_ttl_of_zero_is_refused_and_changes_nothing, a_store_works_on_after_errors;
    ttl_in_whole_seconds, TtlInWholeSeconds =>
        an_entry_expires_when_its_time_is_over_and_not_before,
        a_ttl_over_the_longest_is_refused_and_changes_nothing;
    ttl_late, TtlLate => keeping_the_ttl_of_no_entry_means_for_ever;
    ttl_capped, TtlCapped => the_longest_ttl_is_accepted, expire_and_persist_change_the_time_to_live_alone;
    keep_is_never, KeepIsNever =>
        a_transition_keeps_sets_and_removes_the_time_to_live, an_increment_keeps_the_time_to_live,
        the_store_puts_under_a_condition_and_keeps_the_time_to_live;
    expire_does_nothing, ExpireDoesNothing =>
        a_transition_changes_the_time_to_live_and_leaves_the_value,
        a_watch_reports_a_change_of_the_time_to_live_but_no_expiry;
    expire_creates, ExpireCreates => changing_the_time_to_live_of_no_entry_does_nothing;
    get_many_sorted, GetManySorted =>
        get_many_answers_in_the_order_of_its_keys, get_many_answers_a_key_as_often_as_it_is_asked_for,
        many_entries_expire_each_at_its_time;
    get_many_without_duplicates, GetManyWithoutDuplicates =>
        a_key_that_was_never_written_reads_as_missing, a_deleted_key_reads_as_missing,
        an_expired_key_reads_as_missing;
    get_many_at_most_thousand, GetManyAtMostThousand =>
        get_many_takes_ten_thousand_keys, a_batch_takes_ten_thousand_writes;
    batch_answers_reversed, BatchAnswersReversed =>
        a_batch_answers_in_the_order_of_its_writes, a_batch_whose_conditions_hold_is_carried_out;
    batch_at_most_thousand, BatchAtMostThousand => clear_deletes_what_is_under_the_prefix_and_says_how_much;
    batch_first_wins, BatchFirstWins =>
        the_later_write_of_a_batch_wins, a_batch_sets_and_removes_times_to_live,
        the_store_puts_gets_and_deletes_batches;
    batch_one_by_one, BatchOneByOne =>
        an_invalid_ttl_stops_the_whole_batch, a_transaction_sees_no_batch_half,
        of_racing_conditional_batches_one_wins, a_dropped_batch_is_written_as_a_whole_or_not_at_all;
    batch_conditions_first, BatchConditionsFirst => conditions_of_a_batch_see_its_earlier_writes;
    batch_conflict_unnamed, BatchConflictUnnamed =>
        an_unmet_condition_stops_the_whole_batch, the_error_of_a_batch_shows_no_values_and_escapes_the_key;
    nothing_to_do_refused, NothingToDoRefused =>
        get_many_of_no_keys_answers_nothing, an_empty_batch_does_nothing;
    prefix_is_pattern, PrefixIsPattern => patterns_in_a_prefix_are_plain_bytes;
    prefix_ignored, PrefixIgnored => the_store_lists_counts_and_clears;
    endless_prefix_is_empty, EndlessPrefixIsEmpty =>
        a_prefix_is_matched_byte_for_byte, a_prefix_of_only_0xff_has_an_end;
    snapshot_promised, SnapshotPromised =>
        a_snapshot_scan_sees_the_moment_of_its_first_poll, a_snapshot_scan_sees_no_batch_half;
    scan_reversed, ScanReversed =>
        an_ordered_scan_returns_keys_in_bytewise_order, random_operations_agree_with_the_model;
    scan_after_includes, ScanAfterIncludes => an_ordered_scan_begins_after_a_key;
    scan_by_offset, ScanByOffset =>
        a_scan_does_not_hinder_writes_between_its_pages,
        a_scan_sees_each_key_once_while_others_are_written_and_deleted;
    scan_without_ttl, ScanWithoutTtl => a_scan_returns_the_time_left;
    scan_with_values, ScanWithValues => a_scan_of_keys_leaves_the_values_out;
    scan_any_page, ScanAnyPage => a_page_out_of_range_is_refused;
    scan_one_page, ScanOnePage => pages_do_not_show_in_what_a_scan_returns, a_scan_can_be_dropped_midway;
    count_at_most_thousand, CountAtMostThousand => count_counts_the_entries_under_a_prefix;
    clear_says_nothing, ClearSaysNothing =>
        an_expired_entry_is_not_listed_counted_or_cleared,
        a_dropped_clear_leaves_whole_entries_and_can_be_repeated, the_store_lists_counts_and_clears;
    transition_reads_then_writes, TransitionReadsThenWrites =>
        no_increment_is_lost_or_doubled, concurrent_takes_hand_each_value_to_one,
        increments_that_are_dropped_count_once_or_not_at_all;
    transition_on_client_clock, TransitionOnClientClock => a_transition_is_given_the_time_of_the_store;
    transition_error_is_internal, TransitionErrorIsInternal =>
        a_transition_that_fails_changes_nothing_and_its_error_arrives,
        an_increment_past_the_range_of_i64_is_refused_and_changes_nothing;
    transition_error_deletes, TransitionErrorDeletes =>
        a_transition_that_fails_changes_nothing_and_its_error_arrives;
    transition_nothing_puts, TransitionNothingPuts => a_transition_that_does_nothing_leaves_the_entry;
    transition_never_deletes, TransitionNeverDeletes => a_transition_deletes;
    watch_everything, WatchEverything => a_watch_matches_its_prefix_byte_for_byte;
    watch_without_deletes, WatchWithoutDeletes =>
        a_watch_reports_puts_and_deletes_in_order, a_watch_reports_batches_in_order,
        a_watch_reports_the_writes_of_a_transaction, a_watch_reports_what_is_cleared;
    watch_without_transitions, WatchWithoutTransitions => a_watch_reports_transitions;
    watch_twice, WatchTwice => watchers_come_and_go_without_hindering_each_other;
    watch_ends, WatchEnds => watchers_come_and_go_without_hindering_each_other;
    watch_begins_with_missed, WatchBeginsWithMissed => a_watch_waits_for_the_next_change;
    missed_is_silent, MissedIsSilent =>
        a_slow_watcher_is_told_that_it_missed_changes_and_goes_on,
        a_slow_subscriber_is_told_that_it_missed_messages_and_goes_on;
    channel_is_shared, ChannelIsShared => a_subscriber_hears_its_channel_alone;
    publish_stores, PublishStores => publishing_stores_nothing, publishing_leaves_no_keys_and_no_changes;
    messages_without_whole, MessagesWithoutWhole => a_subscriber_receives_messages_as_they_were_published;
    first_message_lost, FirstMessageLost => every_subscriber_receives_every_message;
    transaction_writes_through, TransactionWritesThrough =>
        nobody_sees_a_transaction_before_it_commits, a_scan_sees_a_transaction_only_after_it_commits,
        blind_writes_do_not_conflict, transactions_on_different_keys_do_not_conflict,
        a_rollback_leaves_nothing, a_dropped_transaction_leaves_nothing_and_holds_nothing,
        a_transaction_does_not_see_expired_entries, the_store_repeats_a_transaction_until_it_goes_through;
    transaction_never_conflicts, TransactionNeverConflicts =>
        an_update_is_not_lost, a_transaction_over_a_thousand_keys_commits_as_a_whole;
    transaction_always_conflicts, TransactionAlwaysConflicts =>
        a_transaction_that_only_reads_or_does_nothing_commits;
    transaction_checks_only_writes, TransactionChecksOnlyWrites =>
        a_change_to_what_was_read_is_a_conflict, a_missing_key_that_appears_is_a_conflict,
        write_skew_is_prevented, concurrent_transactions_keep_the_sum;
    transaction_forgets_own_writes, TransactionForgetsOwnWrites =>
        a_transaction_sets_keeps_and_removes_times_to_live;
    transaction_caches_reads, TransactionCachesReads =>
        an_entry_that_expires_during_a_transaction_is_gone_in_it_too;
    transaction_one_by_one, TransactionOneByOne => a_dropped_commit_is_written_as_a_whole_or_not_at_all;
    transaction_without_conditions, TransactionWithoutConditions =>
        a_condition_and_a_delete_read_too,
        an_unmet_condition_in_a_transaction_answers_no_and_lets_it_go_on;
    unhealthy, Unhealthy => a_store_that_answers_is_healthy_and_gives_figures;
    sweep_takes_all_with_ttl, SweepTakesAllWithTtl => housekeeping_removes_only_what_has_expired;
    compact_loses_all, CompactLosesAll => housekeeping_loses_nothing;
    errors_show_values, ErrorsShowValues => the_error_of_a_transaction_shows_no_values_and_escapes_the_key;
    errors_show_raw_keys, ErrorsShowRawKeys => errors_show_no_values_and_escape_keys;
    nameless, Nameless => a_store_says_its_name_and_stands_by_its_promises;
    put_in_two_steps, PutInTwoSteps =>
        put_that_keeps_the_ttl_keeps_it, a_dropped_put_leaves_the_old_value_or_the_new_one;
    transition_in_two_steps, TransitionInTwoSteps => a_dropped_transition_is_applied_once_or_not_at_all;
    delete_in_two_steps, DeleteInTwoSteps =>
        a_conditional_delete_deletes_only_the_expected_value,
        a_watch_does_not_report_what_was_not_carried_out, concurrent_deletes_answer_yes_to_one,
        a_dropped_delete_leaves_the_old_value_or_none;
}

macro_rules! names {
    ([] $($module:ident::$name:ident $needs:tt,)*) => {
        &[$(stringify!($name)),*]
    };
}

const CASES: &[&str] = commonhold_testkit::__for_each_case! { [names] };

#[test]
fn every_case_finds_a_flaw() {
    let found: BTreeSet<&str> = FOUND.iter().copied().collect();
    let all: BTreeSet<&str> = CASES.iter().copied().collect();
    assert_eq!(found, all);
}

#[test]
#[should_panic(expected = "every case is a test")]
fn a_case_without_a_test_is_noticed() {
    assert_complete(&CASES[1..], 152, || subject(Flaw::None));
}

#[test]
#[should_panic(expected = "cases checked in full")]
fn another_number_of_cases_than_expected_is_noticed() {
    assert_complete(CASES, 153, || subject(Flaw::None));
}

#[test]
#[should_panic(expected = "no case is named")]
fn a_case_that_does_not_exist_is_noticed() {
    commonhold_testkit::run("a case that does not exist", || subject(Flaw::None));
}
