// The scenes of a page begin when they come near the window: a page may hold many.
const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    const script = document.querySelector(`script.dc-scene[data-scene="${target.dataset.dc}"]`);
    boot(target.dataset.dc, ...JSON.parse(script.textContent));
  }
}, { rootMargin: "600px" });
document.querySelectorAll("[data-dc]").forEach((host) => near.observe(host));
// Panels mount the scenes that were computed ahead.
window.dcPlayer = mount;
