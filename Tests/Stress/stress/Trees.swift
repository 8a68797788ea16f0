/// Threads in one tree of page tables: what the tests of PageTables do.
struct Trees {
  private static let steps = 20

  func run(_ run: Run) throws -> String? {
    // Where the time is short, each run begins with another one.
    var place = run.threads
    while !run.isOver {
      let threads = TableThreads(TableThreads.formats[place / 3 % TableThreads.formats.count], steps: Self.steps)
      let failures =
        switch place % 3 {
        case 0: try threads.ownersChange()
        case 1: try threads.oneTableIsLinked()
        default: try threads.neighbours()
        }
      if let failure = failures.first { return failure }
      run.note(Self.steps)
      place += 1
    }
    return nil
  }
}
