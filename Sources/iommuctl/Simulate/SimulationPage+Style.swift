extension SimulationPage {
  /// Light or dark as the reader has it. The policies' colours can be told apart by the colour-blind (Okabe and Ito).
  static let style = """
    :root { color-scheme: light dark; --ground: #fff; --ink: #1c1c1c; --faint: #666; --line: #ddd;
      --strict: #0072b2; --lazy-per-cpu: #b87b00; --lazy-single: #00845f; --whole-tag: #c44e00; --threshold: #a64d80; }
    @media (prefers-color-scheme: dark) { :root { --ground: #161616; --ink: #e8e8e8; --faint: #a0a0a0; --line: #3a3a3a;
      --strict: #56b4e9; --lazy-per-cpu: #f0ad1e; --lazy-single: #2fc79b; --whole-tag: #ff8a4c; --threshold: #e39bc4; } }
    body { background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem;
      max-width: 76rem; }
    h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
    p, dd { max-width: 48rem; }
    .plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 2rem; }
    svg { width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: var(--ink); }
    svg .title { font-weight: 600; font-size: 13px; } svg .group { font-weight: 600; } svg .tick { fill: var(--faint); }
    svg .grid { stroke: var(--line); } svg .stem { stroke-width: 2; opacity: .55; }
    .strict { color: var(--strict); } .lazy-per-cpu { color: var(--lazy-per-cpu); } .lazy-single { color: var(--lazy-single); }
    .whole-tag { color: var(--whole-tag); } .threshold { color: var(--threshold); }
    dt { font-weight: 600; } dd { margin: 0 0 .6rem 1.5rem; }
    .wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
    th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
    th { color: var(--faint); font-weight: 600; white-space: normal; vertical-align: bottom; } .number { text-align: right; font-variant-numeric: tabular-nums; }
    """
}
