import AddressSpace

/// Traces run on a store or an allocator and on its model side by side: what the tests do for a moment, and others for long.
package enum ModelRun {
  /// How a trace ended: what it did, in one number, or where the two differed.
  package enum Outcome: Equatable, Sendable {
    case digest(String)
    case failure(String)
  }

  /// A trace of so many steps on the store; its invariants are looked at after each.
  package static func store(_ space: ModelSpace, seed: UInt64, steps: Int) throws -> Outcome {
    var trace = try ModelTrace(space, choices: Choices(seed: seed))
    for step in 0..<steps {
      trace.step()
      if let failure = trace.failure { return .failure("\(space.name), seed \(seed), step \(step): \(failure)") }
    }
    return .digest("\(trace.digest)")
  }

  /// The same on the allocator, which in the end has to be empty.
  package static func allocator(_ space: AllocatorSpace, seed: UInt64, steps: Int) throws -> Outcome {
    var trace = try AllocatorTrace(space, choices: Choices(seed: seed))
    for step in 0...steps {
      if step < steps { trace.step() } else { trace.end() }
      if let failure = trace.failure { return .failure("\(space.name), seed \(seed), step \(step): \(failure)") }
    }
    return .digest("\(trace.digest)")
  }

  /// A trace whose choices are bytes; where the two differed. The first byte chooses the space.
  package static func bytes(_ bytes: [UInt8]) throws -> String? {
    guard let first = bytes.first else { return nil }
    let choices = Choices(bytes: bytes.dropFirst())
    let index = Int(first) % (ModelSpace.all.count + AllocatorSpace.all.count)
    if index < ModelSpace.all.count {
      var trace = try ModelTrace(ModelSpace.all[index], choices: choices)
      while !trace.random.isUsedUp {
        trace.step()
        if let failure = trace.failure { return failure }
      }
      return nil
    }
    var trace = try AllocatorTrace(AllocatorSpace.all[index - ModelSpace.all.count], choices: choices)
    while !trace.random.isUsedUp {
      trace.step()
      if let failure = trace.failure { return failure }
    }
    trace.end()
    return trace.failure
  }
}

extension ModelTrace {
  fileprivate var failure: String? { store.checkInvariants().map { "\($0)" } ?? difference }
}

extension AllocatorTrace {
  fileprivate var failure: String? { difference ?? allocator.checkInvariants().map { "\($0)" } }
}
