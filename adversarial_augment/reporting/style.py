"""The style sheet of a report: one column on a phone, light or dark as the reader's system.

What is wider than the page scrolls in a box of its own. An arrow at the box's right edge says so: it sticks there, and
where the content ends lies a strip of the page's colour that hides it.
"""

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--page:#fff;--box:#f6f8fa;--rule:#d0d7de;--link:#0a5cad;
--note:#fff6d9}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#a3adb8;--page:#14171c;--box:#1d2229;--rule:#3a424d;
--link:#79b8ff;--note:#3a3114}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:88rem;padding:1rem;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif}
a{color:var(--link)}
h1{font-size:1.7rem;line-height:1.2;margin:.5rem 0;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.5rem 0 .75rem;padding-bottom:.25rem;border-bottom:1px solid var(--rule)}
h3{font-size:1.05rem;margin:1.25rem 0 .5rem;overflow-wrap:anywhere}
h4{font-size:.85rem;font-weight:600;margin:0;color:var(--soft)}
p{max-width:75ch;overflow-wrap:anywhere}
nav{display:flex;flex-wrap:wrap;gap:.25rem 1rem;font-size:.9rem}
code,pre{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.85em}
pre{overflow:auto;max-height:24rem;padding:.75rem;background:var(--box);border:1px solid var(--rule);border-radius:6px}
figure{margin:1rem 0;min-width:0}
figcaption{color:var(--soft);font-size:.9rem;margin-bottom:.35rem;overflow-wrap:anywhere}
summary{cursor:pointer;color:var(--link)}
.text{font-size:.8rem;margin-top:.25rem}
.more{margin:.75rem 0}
.quiet{color:var(--soft);font-size:.9rem}
.note{background:var(--note);border-left:4px solid #b58900;padding:.5rem .75rem;border-radius:4px;max-width:none}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,10rem),1fr));gap:.75rem}
@media (min-width:48rem){.cards{grid-template-columns:repeat(4,1fr)}}
.card{background:var(--box);border:1px solid var(--rule);border-radius:8px;padding:.75rem 1rem}
.card p{margin:0;font-size:.85rem;color:var(--soft)}
.card .number{font-size:1.9rem;line-height:1.3;font-weight:600;color:var(--ink);font-variant-numeric:tabular-nums}
.charts,.maps{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));gap:0 1.5rem;
align-items:start}
.chart{max-width:34rem;width:100%}
.chart svg{display:block;width:100%;height:auto}
.chart svg *{stroke-linejoin:round;stroke-linecap:butt}
.chart svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif!important}
.pictures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,40rem),1fr));gap:0 1.5rem}
.examples img{display:block;width:100%;max-width:68rem;height:auto;background:#fff;border-radius:4px}
.examples .scroll img{min-width:36rem}
.parts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));background:#fff;max-width:72rem}
.scroll{overflow-x:auto;max-width:100%;display:flex}
.scroll>*{flex:0 1 auto}
.scroll::before{content:"";order:1;flex:none;width:1.2rem;background:var(--page);z-index:3}
.scroll::after{content:"›";order:2;flex:none;width:1.2rem;margin-left:-1.2rem;position:sticky;right:0;z-index:2;
display:flex;align-items:center;justify-content:flex-end;font-size:1.7rem;font-weight:700;color:var(--link);
pointer-events:none;background:linear-gradient(to right,transparent,var(--page) 70%);
box-shadow:inset -2px 0 var(--link)}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .4rem;border-bottom:1px solid var(--rule);text-align:right;vertical-align:top}
thead th{font-weight:600;vertical-align:bottom}
thead th[scope=colgroup]{text-align:center;border-left:1px solid var(--rule);color:var(--soft)}
td:not(.word){white-space:nowrap}
.word{text-align:left;overflow-wrap:anywhere}
tbody th.word{overflow-wrap:break-word}
td.word{min-width:9rem}
tbody th{font-weight:600;min-width:7rem;max-width:17rem;position:sticky;left:0;z-index:1;background:var(--page)}
.maps table{flex-grow:1;flex-basis:100%;max-width:34rem}
.scale{display:flex;flex-wrap:wrap;align-items:center;gap:0;font-size:.85rem;color:var(--soft);max-width:none}
.scale span{padding:.1rem .5rem}
.scale span:first-of-type{margin-left:.5rem}
.maps th,.maps td{padding:.25rem .3rem}
.maps tbody th{min-width:4.5rem}
.published th,.published td{color:var(--soft);font-weight:400;font-style:italic}
.mean th,.mean td{font-weight:700}
@media (max-width:40rem){.card .number{font-size:1.4rem;white-space:nowrap}
tbody th{min-width:6.5rem;max-width:8rem}td.word{min-width:7rem}
.maps table{font-size:.8rem}.maps th,.maps td{padding:.25rem .2rem}}
"""
