// The page's address names the controls that were moved, as "plane.steps=4": a link shows what its sender saw.
//
// What it asks for is put in place where a control can stand there. `write` brings the address up to date; `more` is
// what a section shows beside its controls, which its script reads with `asked`.
function addressed(section, controls) {
  const asked = (name) => new URLSearchParams(location.search).get(`${section}.${name}`);
  const first = (c) => c.tagName === "SELECT" ? ([...c.options].find((o) => o.defaultSelected) ?? c.options[0]).value : c.defaultValue;
  let waiting = 0;
  for (const control of controls) {
    const wanted = asked(control.name), before = control.value;
    if (!wanted) continue;
    control.value = wanted;
    if (control.value !== wanted) control.value = before;
  }

  function write(more = {}) {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      const address = new URL(location.href), named = address.searchParams;
      for (const name of [...named.keys()]) if (name.startsWith(`${section}.`)) named.delete(name);
      for (const c of controls) if (c.value !== first(c)) named.set(`${section}.${c.name}`, c.value);
      for (const [name, value] of Object.entries(more)) if (value) named.set(`${section}.${name}`, value);
      try { history.replaceState(history.state, "", address); } catch { /* some browsers refuse it in files */ }
    }, 250);
  }

  return { asked, write };
}
