import json

from soupjax.checkpoints import files


def write_results(path, rows):
  files.write_text(path, "".join(json.dumps(r) + "\n" for r in rows))


def write_report(workdir):
  return workdir / "report.html"


def results_table(rows):
  m = {}
  for r in rows:
    if r["metric"] == "prec@1":
      m.setdefault(r["model"], {})[r["dataset"].split("/")[1]] = (
        100 * r["value"]
      )
  return "\n".join(
    f"{k:18s} minival {v['minival']:.1f} test {v['test']:.1f} shifts {sum(x for d, x in v.items() if d not in ('minival', 'test')) / (len(v) - 2):.1f}  "
    + " ".join(f"{d}:{x:.0f}" for d, x in v.items())
    for k, v in m.items()
  )
