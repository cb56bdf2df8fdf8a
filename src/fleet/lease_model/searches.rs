//! The searches, each within its bounds.

use super::{Bounds, SECOND, explore};

#[test]
fn two_processes_never_both_believe_in_a_lease() {
    let (states, believers) = explore(&Bounds {
        ttl: SECOND,
        stale_after: 90 * SECOND,
        seconds: 2,
        requests: 2,
        withdrawals: false,
        in_flight: 2,
        one_id: false,
        beats: false,
        renewals: true,
        sweeps: 0,
        duplicates: 1,
        losses: false,
    });
    assert!(
        states > 10_000 && believers > 500,
        "{states} states, {believers} with a holder"
    );
}

#[test]
fn two_processes_never_both_believe_in_a_lease_that_outlasts_the_heartbeat_limit() {
    let (states, believers) = explore(&Bounds {
        ttl: 90 * SECOND,
        stale_after: SECOND,
        seconds: 2,
        requests: 2,
        withdrawals: false,
        in_flight: 2,
        one_id: false,
        beats: true,
        renewals: false,
        sweeps: 1,
        duplicates: 0,
        losses: false,
    });
    assert!(
        states > 10_000 && believers > 500,
        "{states} states, {believers} with a holder"
    );
}

#[test]
fn two_processes_with_one_id_never_both_believe_in_a_lease() {
    let (states, believers) = explore(&Bounds {
        ttl: 90 * SECOND,
        stale_after: SECOND,
        seconds: 2,
        requests: 2,
        withdrawals: false,
        in_flight: 2,
        one_id: true,
        beats: false,
        renewals: false,
        sweeps: 1,
        duplicates: 0,
        losses: false,
    });
    assert!(
        states > 10_000 && believers > 500,
        "{states} states, {believers} with a holder"
    );
}

#[test]
fn a_claim_that_was_withdrawn_locks_no_run_and_leads_to_no_second_holder() {
    let (states, believers) = explore(&Bounds {
        ttl: 90 * SECOND,
        stale_after: 90 * SECOND,
        seconds: 0,
        requests: 3,
        withdrawals: true,
        in_flight: 2,
        one_id: false,
        beats: false,
        renewals: false,
        sweeps: 0,
        duplicates: 1,
        losses: false,
    });
    assert!(
        states > 10_000 && believers > 500,
        "{states} states, {believers} with a holder"
    );
}

#[test]
fn a_lease_whose_loss_was_told_is_not_believed_in_again() {
    let (states, believers) = explore(&Bounds {
        ttl: SECOND,
        stale_after: 90 * SECOND,
        seconds: 2,
        requests: 3,
        withdrawals: false,
        in_flight: 1,
        one_id: false,
        beats: false,
        renewals: true,
        sweeps: 0,
        duplicates: 1,
        losses: true,
    });
    assert!(
        states > 1_000 && believers > 100,
        "{states} states, {believers} with a holder"
    );
}
