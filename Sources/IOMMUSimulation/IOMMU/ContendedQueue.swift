/// A command queue with several producers, in virtual time: who waits for whom, and how long.
///
/// A producer draws a ticket, puts a batch in when those with lower tickets have put in theirs, each command when there is room for
/// it, and a sync behind them; then it waits until the hardware has done that. The hardware takes one command at a time, in
/// order. Which processor holds the line of the ticket counter is part of the time: who draws right after another waits for it.
///
/// Nothing here depends on threads: the same producers have the same times on every machine.
package struct ContendedQueue {
  /// How a batch fared.
  package struct Passage: Hashable, Sendable {
    /// When the sync was done.
    package var end: UInt64
    /// Times that a command found the queue full.
    package var stalls: Int

    package init(end: UInt64, stalls: Int = 0) { (self.end, self.stalls) = (end, stalls) }
  }

  /// What a producer did, in the end.
  package struct Account: Hashable, Sendable {
    package var batches = 0, commands = 0, stalls = 0
    /// The longest time from asking to the end of the sync.
    package var longestWait: UInt64 = 0
    /// When its last batch was done.
    package var end: UInt64 = 0
  }

  /// The commands that wait, each with the time when it will be done.
  private var waiting: CommandQueue<UInt64>
  private let costs: CostTable
  /// When the last ticket was drawn, the last command was put in, and when the hardware has done all that there is.
  private var lastTicket: UInt64 = 0, lastPut: UInt64 = 0, idle: UInt64 = 0
  private var lastArrival: UInt64 = 0

  /// What it takes a processor to get the line of the ticket counter from another: the time of a put, which is one of those too.
  private var lineTransfer: UInt64 { costs.invalidation }

  package init(capacityShift: Int, costs: CostTable) {
    waiting = CommandQueue(capacityShift: capacityShift)
    self.costs = costs
  }

  private mutating func pass(to time: UInt64) {
    while let end = waiting.first, end <= time { _ = waiting.take() }
  }

  /// How many places nobody has taken at a time, which does not lie before the last arrival.
  package mutating func freeCount(at time: UInt64) -> Int {
    pass(to: time)
    return waiting.freeCount
  }

  /// Puts a batch in, for a producer that comes at a time; arrivals are in order.
  package mutating func submit(commands: Int, at time: UInt64) -> Passage {
    precondition(time >= lastArrival, "who comes later is served later")
    lastArrival = time
    lastTicket = max(time, lastTicket) + lineTransfer
    var now = max(lastTicket, lastPut), passage = Passage(end: 0)
    for index in 0...commands {
      pass(to: now)
      if waiting.isFull, let room = waiting.first {
        passage.stalls += 1
        now = room
        pass(to: now)
      }
      now += costs.invalidation
      idle = max(idle, now) + (index == commands ? costs.sync : costs.invalidation)
      _ = waiting.put(idle)
    }
    (lastPut, passage.end) = (now, idle)
    return passage
  }

  /// Runs producers until each has nothing more, all from time 0 on; each comes back as soon as its batch is done and it has done
  /// something else meanwhile.
  ///
  /// - Parameters:
  ///   - producers: How many.
  ///   - pause: What a producer does between two batches, in nanoseconds.
  ///   - next: The number of commands of a producer's next batch, with the free places that it sees and the time; nil ends it.
  package mutating func run(
    producers: Int, pause: UInt64, next: (_ producer: Int, _ freeCount: Int, _ time: UInt64) -> Int?
  ) -> [Account] {
    run(producers: producers, pause: pause, next: next, done: { _, _, _ in })
  }

  /// The same, with a look at what each batch took: its commands, and the time from asking to its end.
  package mutating func run(
    producers: Int, pause: UInt64, next: (_ producer: Int, _ freeCount: Int, _ time: UInt64) -> Int?,
    done: (_ producer: Int, _ commands: Int, _ time: UInt64) -> Void
  ) -> [Account] {
    var accounts = [Account](repeating: Account(), count: producers)
    var arrivals: [UInt64?] = Array(repeating: 0, count: producers)
    while let producer = arrivals.indices.filter({ arrivals[$0] != nil }).min(by: { arrivals[$0]! < arrivals[$1]! }) {
      let time = arrivals[producer]!
      guard let commands = next(producer, freeCount(at: time), time) else {
        arrivals[producer] = nil
        continue
      }
      let passage = submit(commands: commands, at: time)
      accounts[producer].batches += 1
      accounts[producer].commands += commands
      accounts[producer].stalls += passage.stalls
      accounts[producer].longestWait = max(accounts[producer].longestWait, passage.end - time)
      accounts[producer].end = passage.end
      arrivals[producer] = passage.end + pause
      done(producer, commands, passage.end - time)
    }
    return accounts
  }
}
