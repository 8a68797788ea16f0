import AddressSpace
import Testing

/// A counter that only a lock makes safe.
private final class Guarded: @unchecked Sendable {
  let lock = SpinLock()
  var value = 0
}

struct SpinLockTests {
  @Test func letsOneThreadInAtATime() async {
    let guarded = Guarded()
    await withTaskGroup(of: Void.self) { group in
      for _ in 0..<8 {
        group.addTask { for _ in 0..<20_000 { guarded.lock.withLock { guarded.value += 1 } } }
      }
    }
    #expect(guarded.value == 160_000)
  }

  @Test func isTakenOnce() {
    let lock = SpinLock()
    #expect(lock.tryLock() == true)
    #expect(lock.tryLock() == false)
    lock.unlock()
    #expect(lock.tryLock() == true)
    lock.unlock()
  }

  @Test func isGivenBackWhenItsUserThrows() {
    let lock = SpinLock()
    #expect(throws: RangeStoreFailure.empty) {
      try lock.withLock { () throws(RangeStoreFailure) in throw .empty }
    }
    #expect(lock.tryLock() == true)
    lock.unlock()
  }
}
