//! What is encoded and decoded for every batch allocates nothing once its buffers are warm.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use corelane::request::{Acks, Appended, Produce, ProduceBatch, ProduceResult, Request, Response};
use corelane::types::{TopicId, TopicPartition};
use corelane::wire::{self, PREFIX_LEN, RequestEncoder, ResponseEncoder};

thread_local!(static ALLOCATIONS: Cell<usize> = const { Cell::new(0) });

/// The system's allocator, counting per thread.
struct Counting;

#[allow(unsafe_code)] // an allocator can't be counted otherwise
// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations(run: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    run();
    ALLOCATIONS.get() - before
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1u8; 100]))), 1);
    assert_eq!(allocations(|| ()), 0);
}

#[test]
fn a_produce_of_one_batch_allocates_nothing_when_warm() {
    let partition = TopicPartition { topic: TopicId([1; 16]), partition: 3 };
    let batches = vec![ProduceBatch { partition, range: 0..1000 }];
    let request = Request::Produce(Produce { acks: Acks::All, timeout_ms: 1000, batches, crc_trailer: false });
    let appended = Appended { base_offset: 7, log_append_time: -1, log_start: 0 };
    let response = Response::Produce(vec![ProduceResult { partition, outcome: Ok(appended) }]);

    let (mut requests, mut responses) = (RequestEncoder::new(), ResponseEncoder::new());
    let (mut request_frame, mut response_frame, mut spare) = (vec![], vec![], vec![]);
    let mut round = |count: &mut [usize; 4]| {
        request_frame.clear();
        count[0] = allocations(|| wire::encode_request(&mut requests, 9, &request, 1000, &mut request_frame).unwrap());
        count[1] = allocations(|| {
            let (_, decoded) = wire::decode_request_reusing(&request_frame[PREFIX_LEN..], 1000, &mut spare).unwrap();
            let Request::Produce(produce) = decoded else { panic!("a produce request") };
            spare = produce.batches;
        });
        response_frame.clear();
        count[2] = allocations(|| wire::encode_response(&mut responses, 9, &response, 0, &mut response_frame));
        count[3] = allocations(|| drop(wire::decode_response(&response_frame[PREFIX_LEN..], 0).unwrap()));
    };
    let mut count = [0; 4];
    round(&mut count);
    assert!(count[0] > 0, "a cold encoder allocates: the counter sees it");
    round(&mut count);
    assert_eq!(count, [0, 0, 0, 1], "encode request, decode request, encode response, decode response (its list of results)");
}
