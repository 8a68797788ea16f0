import Synchronization

extension DeviceEvents {
  /// The events as they come: `for await event in device.events.stream { … }`.
  ///
  /// Each stream gets every event from its making on, and ends when the device is closed. The latest 16 that nobody has
  /// taken yet are kept.
  public var stream: AsyncStream<DeviceEvent> {
    AsyncStream(bufferingPolicy: .bufferingNewest(16)) { continuation in
      let number: Int? = subscribers.withLock { subscribers in
        guard !subscribers.isFinished else { return nil }
        defer { subscribers.next += 1 }
        subscribers.all[subscribers.next] = continuation
        return subscribers.next
      }
      guard let number else { return continuation.finish() }
      continuation.onTermination = { [weak self] _ in
        _ = self?.subscribers.withLock { $0.all.removeValue(forKey: number) }
      }
    }
  }

  struct Subscribers {
    var next = 0
    var all: [Int: AsyncStream<DeviceEvent>.Continuation] = [:]
    var isFinished = false
  }

  func finishStreams() {
    let all = subscribers.withLock { subscribers in
      defer { subscribers = Subscribers(isFinished: true) }
      return subscribers.all.values
    }
    // Outside the lock: it calls onTermination.
    for continuation in all { continuation.finish() }
  }
}
