import IOMMU

/// A case that ends early, with the reason.
enum CaseStop: Error {
  case failed(String)
  case skipped(String)
}

/// Collects the cases of a run, and tells each as it ends.
final class Recorder {
  enum Verdict: String { case pass, fail, skip }

  struct Case {
    let name: String
    let verdict: Verdict
    let reason: String
  }

  private(set) var cases: [Case] = []
  /// Bytes that were moved by the device and compared.
  var bytesVerified = 0
  private let context: Context

  init(_ context: Context) { self.context = context }

  var failures: Int { cases.count { $0.verdict == .fail } }

  /// Runs one case; what it answers is the story of what happened. Returns whether the run can go on from it.
  @discardableResult
  func run(_ name: String, _ body: () throws -> String) -> Bool {
    do {
      add(name, .pass, try body())
    } catch CaseStop.skipped(let reason) {
      add(name, .skip, reason)
    } catch CaseStop.failed(let reason) {
      add(name, .fail, reason)
      return false
    } catch let error as DMAError {
      add(name, .fail, error.description)
      return false
    } catch {
      add(name, .fail, "\(error)")
      return false
    }
    return true
  }

  func add(_ name: String, _ verdict: Verdict, _ reason: String) {
    cases.append(Case(name: name, verdict: verdict, reason: reason))
    let mark = verdict == .pass ? "[ok]   " : verdict == .skip ? "[skip] " : "[FAIL] "
    context.say("\(mark) \(name): \(reason)")
  }
}

/// Fails the case unless the condition holds.
func require(_ condition: Bool, _ text: @autoclosure () -> String) throws(CaseStop) {
  if !condition { throw .failed(text()) }
}

/// Fails the case unless the call is refused with one of these codes; returns the error.
@discardableResult
func requireRefusal(
  _ codes: DMAError.Code..., of what: String, _ body: () throws(DMAError) -> Void
) throws(CaseStop) -> DMAError {
  do throws(DMAError) { try body() } catch {
    if codes.contains(error.code) { return error }
    throw .failed("\(what) was refused for another reason: \(error)")
  }
  throw .failed("\(what) was accepted")
}
