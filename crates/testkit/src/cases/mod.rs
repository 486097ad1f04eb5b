//! The table of all cases: each is a function that takes a fresh subject and panics if it misbehaves.

mod batches;
mod cancellation;
mod concurrency;
mod conditions;
mod expiry;
mod scans;
mod service;
mod store;
mod transactions;
mod transitions;
mod values;
mod watches;

use crate::{
    conformance::{Capability, Case},
    model,
};

/// Calls a macro with every case: its module, its name, and what it needs. A case that is not listed here is
/// dead code, which the compiler reports.
#[doc(hidden)]
#[macro_export]
macro_rules! __for_each_case {
    ([$($callback:tt)+] $($argument:tt)*) => {
        $($callback)+! {
            [$($argument)*]
            values::a_key_that_was_never_written_reads_as_missing [],
            values::a_deleted_key_reads_as_missing [],
            values::an_expired_key_reads_as_missing [Ttl],
            values::a_value_that_was_put_is_read_back [],
            values::an_empty_value_is_a_value [],
            values::a_later_put_replaces_the_earlier_one [],
            values::every_byte_may_stand_in_a_key [],
            values::every_byte_may_stand_in_a_value [],
            values::keys_that_begin_alike_are_different_keys [],
            values::the_longest_key_is_accepted_and_compared_to_its_last_byte [],
            values::the_longest_value_is_accepted [],
            values::a_value_over_the_limit_is_refused_and_changes_nothing [],
            values::delete_says_whether_something_was_there [],
            values::get_many_answers_in_the_order_of_its_keys [],
            values::get_many_answers_a_key_as_often_as_it_is_asked_for [],
            values::get_many_of_no_keys_answers_nothing [],
            values::get_many_takes_ten_thousand_keys [],
            conditions::put_if_absent_writes_only_once [],
            conditions::put_if_absent_succeeds_over_an_expired_entry [Ttl],
            conditions::put_if_present_writes_only_over_an_entry [],
            conditions::compare_and_swap_swaps_only_the_expected_value [],
            conditions::compare_and_swap_to_the_same_value_succeeds [],
            conditions::compare_and_swap_compares_long_values_to_the_last_byte [],
            conditions::a_conditional_delete_deletes_only_the_expected_value [],
            conditions::an_unmet_condition_leaves_the_time_to_live [Ttl],
            conditions::a_condition_and_a_time_to_live_go_together [Ttl],
            expiry::an_entry_expires_when_its_time_is_over_and_not_before [Ttl],
            expiry::the_time_left_is_told_and_shrinks [Ttl],
            expiry::put_without_a_ttl_removes_an_earlier_one [Ttl],
            expiry::put_with_a_ttl_replaces_an_earlier_one [Ttl],
            expiry::put_that_keeps_the_ttl_keeps_it [Ttl],
            expiry::keeping_the_ttl_of_no_entry_means_for_ever [Ttl],
            expiry::a_new_entry_inherits_no_ttl_from_a_deleted_one [Ttl],
            expiry::a_ttl_of_zero_is_refused_and_changes_nothing [Ttl],
            expiry::a_ttl_over_the_longest_is_refused_and_changes_nothing [Ttl],
            expiry::the_longest_ttl_is_accepted [Ttl],
            expiry::an_expired_entry_is_not_listed_counted_or_cleared [Ttl, Scan],
            expiry::many_entries_expire_each_at_its_time [Ttl],
            batches::a_batch_answers_in_the_order_of_its_writes [],
            batches::the_later_write_of_a_batch_wins [],
            batches::an_empty_batch_does_nothing [],
            batches::a_batch_takes_ten_thousand_writes [],
            batches::a_batch_sets_and_removes_times_to_live [Ttl],
            batches::a_batch_whose_conditions_hold_is_carried_out [AtomicBatch],
            batches::conditions_of_a_batch_see_its_earlier_writes [AtomicBatch],
            batches::an_unmet_condition_stops_the_whole_batch [AtomicBatch],
            batches::an_invalid_write_stops_the_whole_batch [AtomicBatch],
            batches::an_invalid_ttl_stops_the_whole_batch [AtomicBatch, Ttl],
            scans::a_prefix_is_matched_byte_for_byte [Scan],
            scans::patterns_in_a_prefix_are_plain_bytes [Scan],
            scans::a_prefix_of_only_0xff_has_an_end [Scan],
            scans::the_empty_prefix_matches_every_key [Scan],
            scans::a_prefix_matches_the_key_that_it_is [Scan],
            scans::a_scan_returns_values [Scan],
            scans::a_scan_returns_the_time_left [Scan, Ttl],
            scans::a_scan_of_keys_leaves_the_values_out [Scan],
            scans::pages_do_not_show_in_what_a_scan_returns [Scan],
            scans::a_page_out_of_range_is_refused [Scan],
            scans::a_scan_can_be_dropped_midway [Scan],
            scans::a_scan_does_not_hinder_writes_between_its_pages [Scan],
            scans::an_ordered_scan_returns_keys_in_bytewise_order [Scan, OrderedScan],
            scans::an_ordered_scan_begins_after_a_key [Scan, OrderedScan],
            scans::a_snapshot_scan_sees_the_moment_of_its_first_poll [Scan, SnapshotScan],
            scans::count_counts_the_entries_under_a_prefix [Scan],
            scans::clear_deletes_what_is_under_the_prefix_and_says_how_much [Scan],
            transitions::a_transition_sees_the_state_and_replaces_it [],
            transitions::replies_reach_the_caller_whatever_the_bytes [],
            transitions::a_transition_that_does_nothing_leaves_the_entry [],
            transitions::a_transition_deletes [],
            transitions::a_transition_that_fails_changes_nothing_and_its_error_arrives [],
            transitions::a_transition_sees_what_was_written_by_every_other_way [],
            transitions::a_transition_is_given_the_time_of_the_store [],
            transitions::a_transition_changes_the_time_to_live_and_leaves_the_value [Ttl],
            transitions::changing_the_time_to_live_of_no_entry_does_nothing [Ttl],
            transitions::a_transition_keeps_sets_and_removes_the_time_to_live [Ttl],
            transitions::a_transition_over_an_expired_entry_begins_anew [Ttl],
            watches::a_watch_reports_puts_and_deletes_in_order [Watch],
            watches::a_watch_reports_transitions [Watch],
            watches::a_watch_reports_batches_in_order [Watch],
            watches::a_watch_reports_the_writes_of_a_transaction [Watch, Transactions],
            watches::a_watch_reports_what_is_cleared [Watch, Scan],
            watches::a_watch_reports_a_change_of_the_time_to_live_but_no_expiry [Watch, Ttl],
            watches::a_watch_does_not_report_what_was_not_carried_out [Watch],
            watches::a_watch_matches_its_prefix_byte_for_byte [Watch],
            watches::watchers_come_and_go_without_hindering_each_other [Watch],
            watches::a_slow_watcher_is_told_that_it_missed_changes_and_goes_on [Watch],
            watches::a_subscriber_receives_messages_as_they_were_published [Publish],
            watches::a_subscriber_hears_its_channel_alone [Publish],
            watches::every_subscriber_receives_every_message [Publish],
            watches::publishing_stores_nothing [Publish],
            watches::publishing_leaves_no_keys_and_no_changes [Publish, Watch, Scan],
            watches::a_slow_subscriber_is_told_that_it_missed_messages_and_goes_on [Publish],
            watches::a_watch_waits_for_the_next_change [Watch],
            transactions::a_transaction_sees_its_own_writes [Transactions],
            transactions::nobody_sees_a_transaction_before_it_commits [Transactions],
            transactions::a_scan_sees_a_transaction_only_after_it_commits [Transactions, Scan],
            transactions::a_change_to_what_was_read_is_a_conflict [Transactions],
            transactions::a_missing_key_that_appears_is_a_conflict [Transactions],
            transactions::a_condition_and_a_delete_read_too [Transactions],
            transactions::blind_writes_do_not_conflict [Transactions],
            transactions::transactions_on_different_keys_do_not_conflict [Transactions],
            transactions::write_skew_is_prevented [Transactions],
            transactions::an_update_is_not_lost [Transactions],
            transactions::a_rollback_leaves_nothing [Transactions],
            transactions::a_dropped_transaction_leaves_nothing_and_holds_nothing [Transactions],
            transactions::a_transaction_that_only_reads_or_does_nothing_commits [Transactions],
            transactions::an_unmet_condition_in_a_transaction_answers_no_and_lets_it_go_on [Transactions],
            transactions::an_invalid_write_in_a_transaction_is_refused_and_the_rest_commits [Transactions],
            transactions::a_transaction_sets_keeps_and_removes_times_to_live [Transactions, Ttl],
            transactions::a_transaction_does_not_see_expired_entries [Transactions, Ttl],
            transactions::an_entry_that_expires_during_a_transaction_is_gone_in_it_too [Transactions, Ttl],
            transactions::a_transaction_over_a_thousand_keys_commits_as_a_whole [Transactions],
            service::a_store_says_its_name_and_stands_by_its_promises [],
            service::a_store_that_answers_is_healthy_and_gives_figures [],
            service::housekeeping_loses_nothing [],
            service::housekeeping_removes_only_what_has_expired [Ttl],
            service::errors_show_no_values_and_escape_keys [],
            service::the_error_of_a_batch_shows_no_values_and_escapes_the_key [AtomicBatch],
            service::the_error_of_a_transaction_shows_no_values_and_escapes_the_key [Transactions],
            service::a_store_works_on_after_errors [],
            concurrency::no_increment_is_lost_or_doubled [],
            concurrency::of_racing_set_if_absent_one_wins [],
            concurrency::of_racing_set_if_absent_over_an_expired_entry_one_wins [Ttl],
            concurrency::a_counter_by_compare_and_swap_is_exact [],
            concurrency::concurrent_takes_hand_each_value_to_one [],
            concurrency::concurrent_deletes_answer_yes_to_one [],
            concurrency::a_value_is_never_seen_half_written [],
            concurrency::a_task_reads_what_it_wrote [],
            concurrency::a_scan_sees_each_key_once_while_others_are_written_and_deleted [Scan],
            concurrency::concurrent_transactions_keep_the_sum [Transactions],
            concurrency::a_transaction_sees_no_batch_half [Transactions, AtomicBatch],
            concurrency::a_snapshot_scan_sees_no_batch_half [Scan, SnapshotScan, AtomicBatch],
            concurrency::of_racing_conditional_batches_one_wins [AtomicBatch],
            cancellation::a_dropped_put_leaves_the_old_value_or_the_new_one [],
            cancellation::a_dropped_delete_leaves_the_old_value_or_none [],
            cancellation::a_dropped_transition_is_applied_once_or_not_at_all [],
            cancellation::a_dropped_batch_is_written_as_a_whole_or_not_at_all [AtomicBatch],
            cancellation::a_dropped_commit_is_written_as_a_whole_or_not_at_all [Transactions],
            cancellation::a_dropped_clear_leaves_whole_entries_and_can_be_repeated [Scan],
            cancellation::increments_that_are_dropped_count_once_or_not_at_all [],
            store::an_increment_counts_in_decimal_text [],
            store::an_increment_of_what_is_no_integer_is_refused_and_changes_nothing [],
            store::an_increment_past_the_range_of_i64_is_refused_and_changes_nothing [],
            store::an_increment_keeps_the_time_to_live [Ttl],
            store::an_increment_over_an_expired_counter_begins_at_zero [Ttl],
            store::get_and_delete_hands_over_the_value [],
            store::expire_and_persist_change_the_time_to_live_alone [Ttl],
            store::the_store_says_which_conditions_held [],
            store::the_store_puts_gets_and_deletes_batches [],
            store::the_store_lists_counts_and_clears [Scan],
            store::the_store_carries_typed_values [],
            store::the_store_repeats_a_transaction_until_it_goes_through [Transactions],
            store::the_store_puts_under_a_condition_and_keeps_the_time_to_live [Ttl],
            model::random_operations_agree_with_the_model [],
        }
    };
}

macro_rules! table {
    ([] $($module:ident::$name:ident [$($need:ident),*],)*) => {
        &[$(Case {
            name: stringify!($name),
            needs: &[$(Capability::$need),*],
            check: |subject| Box::pin($module::$name(subject)),
        }),*]
    };
}

/// All cases, in the order of the reading.
pub(crate) const CASES: &[Case] = __for_each_case! { [table] };

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own() {
        let names: BTreeSet<&str> = CASES.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), CASES.len());
    }
}
