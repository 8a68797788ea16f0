import IOMMUSimulation

/// The report as a page for a browser: one file, which asks for nothing else. It is well-formed XML as well.
struct SimulationPage {
  let report: SimulationReport

  /// The groups of bars: what policies are compared on.
  private struct Group: Hashable {
    let iommu: SimulatedMachine.IOMMUKind
    let costs: CostTable
    var name: String { "\(iommu.rawValue), \(costs.name)" }
  }

  var html: String {
    let title = "Invalidation policies on \(Markup.text(report.trace.name))"
    return """
      <!DOCTYPE html>
      <html lang="en">
      <head>
      <meta charset="utf-8"/>
      <meta name="viewport" content="width=device-width, initial-scale=1"/>
      <title>\(title)</title>
      <style>
      \(SimulationPage.style)
      </style>
      </head>
      <body>
      <h1>\(title)</h1>
      <p>What was run: \(Markup.text(report.heading)). Simulated by iommuctl: all times are virtual, and the same command comes to the same
      figures on every machine.\([report.hardware.text, report.doubt].compactMap { $0.map { " \(Markup.text($0))" } }.joined())</p>
      <div class="plots">
      \(plots.map(\.svg).joined(separator: "\n"))
      </div>
      <h2>The policies</h2>
      <dl>
      \(policies)
      </dl>
      <h2>How it was counted</h2>
      \(explanation)
      <h2>The figures</h2>
      <div class="wide">
      \(table)
      </div>
      </body>
      </html>

      """
  }

  // MARK: - Plots

  private var plots: [DotPlot] {
    [
      plot("Commands for each unmap", "", .logarithmic) { $0.commandsPerUnmap },
      plot("Latency of an unmap, 99 %", "ns", .logarithmic) { $0.p99.map { Double($0) } },
      plot("Longest exposure of unmapped memory", "ns", .logarithmic) { Double($0.longestExposure) },
      plot("Throughput by the formula", "Gbit/s", .linear) { $0.throughput },
      plot("Reads of page tables for each page", "", .linear) { $0.readsPerPage },
      plot("Throughput by the clock", "Gbit/s", .linear) { $0.achieved },
    ]
  }

  private func plot(
    _ title: String, _ unit: String, _ scale: DotPlot.Scale, _ value: (SimulationResult) -> Double?
  ) -> DotPlot {
    var groups: [(name: String, rows: [DotPlot.Row])] = []
    for result in report.results {
      let group = Group(iommu: result.what.iommu, costs: result.what.costs)
      if groups.last?.name != group.name { groups.append((group.name, [])) }
      let row = DotPlot.Row(name: result.what.policy.rawValue, value: value(result))
      groups[groups.count - 1].rows.append(row)
    }
    return DotPlot(title: title, unit: unit, scale: scale, groups: groups)
  }

  // MARK: - Words

  private var policies: String {
    SimulationPolicy.allCases.map { policy in
      "<dt class=\"\(policy.rawValue)\">\(policy.rawValue)</dt>"
        + "<dd>\(Markup.text(policy.explanation(report.threshold)))</dd>"
    }.joined(separator: "\n")
  }

  private var explanation: String {
    """
    <p>The library itself runs, on a simulated machine each time: its mappings, its page tables, its queues and its choice of
    commands. The page tables are the process's, in the format of the hardware, which is simulated and walks them: an SMMUv3 as
    QEMU's, on which they were tried as well, and a VT-d that nests, by its specification. The operations are done in the order of the trace by one thread on one processor. For each mapping the device reads
    its descriptor, in a page that stays mapped, and every page of the mapping once; then the driver unmaps it.</p>
    <p><b>Commands</b>, <b>syncs</b> and <b>stalls</b> are the hardware's own counts: commands put into its queue, waits for them, and
    times that commands found the queue full. One thread waits for each of its calls, so that it fills only a queue which is shorter than
    a call's commands; other producers, which have a round of 63 commands each in the queue before each call, on VT-d one of 16, fill
    it more. On VT-d each command is for an aligned power of two of pages and has a wait of its own, on SMMUv3 a call has one
    wait. What is queued at the end is flushed and counted.</p>
    <p><b>Latency</b> is what an unmap takes: \(DriverCosts.unmap(1)) ns and 1.5 ns for each further page for the tables, and
    what the table of costs says of a system call, of a command and of the wait. A table is named by the hardware and the
    nanoseconds of one invalidation.
    <b>Exposure</b> is the longest from an unmap until the invalidation that covers it was done.</p>
    <p><b>Throughput by the formula</b> is T = p / (l<sub>0</sub> + M · l<sub>m</sub>) with p = \(Transfer.unit) bytes,
    l<sub>0</sub> = \(Transfer.base) ns, l<sub>m</sub> = \(Transfer.perRead) ns, and M the reads of page tables for each page that the device
    moves: what the device could do if the driver were never late. The model is that of Rubin and others, <i>Fast &amp; Safe IO Memory
    Protection</i>, SOSP 2024. Reads of the second stage are not counted.
    <b>Throughput by the clock</b> is what was moved over all the time that it took: the device moves one mapping after the other,
    by the same formula, while the driver maps and unmaps others, and each waits for the other where it must.</p>
    """
  }

  private var table: String {
    let names = ["IOMMU", "Costs", "Policy"].map { "<th>\($0)</th>" }
    let numbers = [
      "Unmaps", "Commands", "Syncs", "Stalls", "p50 ns", "p99 ns", "Exposure ns", "Formula Gbit/s", "Clock Gbit/s",
      "Reads a page", "No room",
    ]
    let head = (names + numbers.map { "<th class=\"number\">\($0)</th>" }).joined()
    let rows = report.results.map { result in
      let names = [result.what.iommu.rawValue, result.what.costs.name, result.what.policy.rawValue]
      let numbers: [String?] = [
        String(result.unmaps), String(result.sent.commands), String(result.sent.syncs), String(result.sent.stalls),
        result.p50.map { String($0) }, result.p99.map { String($0) }, String(result.longestExposure),
        result.throughput.map(SimulationReport.gigabits), result.achieved.map(SimulationReport.gigabits),
        result.readsPerPage.map(SimulationReport.reads), String(result.noRoom),
      ]
      let cells = names.map { "<td>\($0)</td>" } + numbers.map { "<td class=\"number\">\($0 ?? "–")</td>" }
      return "<tr>\(cells.joined())</tr>"
    }
    return "<table>\n<thead><tr>\(head)</tr></thead>\n<tbody>\n\(rows.joined(separator: "\n"))\n</tbody>\n</table>"
  }
}

/// Text in a page.
enum Markup {
  static func text(_ text: String) -> String {
    text.replacing("&", with: "&amp;").replacing("<", with: "&lt;").replacing(">", with: "&gt;")
  }
}
